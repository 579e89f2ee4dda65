"""The ends of a product's rows are exact whatever it is computed in, and the histogram counts every entry."""

import pytest
import torch
from torch import Tensor

from sae.ops import naive, native
from sae.ops.extremes import Columns, Extremes

SIZES = [(5, 1000, 33, 10), (3, 7, 5, 10), (4, 64, 8, 10), (2, 1, 3, 10), (20, 5000, 64, 3), (3, 3000, 16, 2000)]
BINS = 32


@pytest.fixture(params=["compiled", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("this machine has no C compiler")
    return str(request.param)


def drawn(rows: int, columns: int, d: int) -> tuple[Tensor, Tensor]:
    """Factors; the lengths of columns differ as those of tokens in an unembedding do."""
    return torch.randn(rows, d), torch.randn(columns, d) * (0.2 + torch.rand(columns, 1))


def dense(left: Tensor, right: Tensor, number: int) -> Extremes:
    product = left.double() @ right.double().T
    top, bottom = product.topk(number, dim=1), product.topk(number, dim=1, largest=False)
    counts = torch.stack([row.histc(BINS) for row in product]).long()
    return Extremes(*top, *bottom, counts)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns", "d", "number"), SIZES)
def test_the_ends_equal_those_of_the_dense_product(
    rows: int, columns: int, d: int, number: int, dtype: torch.dtype
) -> None:
    left, right = drawn(rows, columns, d)
    found, exact = Columns(right, dtype).extremes(left, number, BINS), dense(left, right, min(number, columns))
    for mine, true in ((found.top, exact.top), (found.bottom, exact.bottom)):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5)
    product = left @ right.T
    for values, at in ((found.top, found.top_at), (found.bottom, found.bottom_at)):
        torch.testing.assert_close(product.gather(1, at), values, rtol=1e-5, atol=1e-5)
        assert all(len(set(row)) == values.shape[1] for row in at.tolist())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.001), (torch.bfloat16, 0.05)])
def test_the_histogram_counts_every_entry_where_it_is(dtype: torch.dtype, share: float) -> None:
    left, right = drawn(20, 5000, 64)
    found, exact = Columns(right, dtype).extremes(left, 10, BINS), dense(left, right, 10)
    assert found.histogram.sum(1).tolist() == [5000] * 20
    # What lies at an edge may be counted on its other side: then it moves by one bin.
    moved = (found.histogram - exact.histogram).cumsum(1).abs().sum(1)
    assert (moved <= share * 5000).all()


@pytest.mark.usefixtures("way")
def test_a_row_of_one_value_is_in_the_middle_of_its_histogram() -> None:
    found = Columns(torch.zeros(100, 3)).extremes(torch.ones(2, 3), 4, 8)
    assert found.histogram.tolist() == [[0, 0, 0, 0, 100, 0, 0, 0]] * 2 and not found.top.any()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_counts_as_zero(bad: float, dtype: torch.dtype) -> None:
    left, right = torch.ones(3, 4), torch.rand(50, 4) + 1
    left[1, 2], right[7, 0] = bad, bad
    found = Columns(right, dtype).extremes(left, 5, 8)
    assert all(values.isfinite().all() for values in found) and found.histogram.sum(1).tolist() == [50] * 3
    for values in (found.top_at, found.bottom_at):
        assert ((values >= 0) & (values < 50)).all()
    if not abs(bad) < torch.inf:
        assert found.top[1].tolist() == [0.0] * 5 and 7 not in found.top_at[0]


def test_more_entries_within_their_error_than_are_scored_anew_are_no_fault() -> None:
    right = torch.ones(5000, 8) + 1e-6 * torch.arange(5000).unsqueeze(1)
    found = Columns(right, torch.bfloat16).extremes(torch.ones(2, 8), 10, 8)
    torch.testing.assert_close(found.top, torch.full((2, 10), 8.0), rtol=1e-2, atol=0)


def test_any_number_of_threads_and_of_rows_at_a_time_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = drawn(40, 4096, 16)
    whole = Columns(right).extremes(left, 10, BINS)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = Columns(right).extremes(left, 10, BINS)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one, other)


def test_without_rows_there_is_nothing() -> None:
    found = Columns(torch.rand(20, 3)).extremes(torch.empty(0, 3), 5, 8)
    assert found.top.shape == (0, 5) and found.histogram.shape == (0, 8)
    assert naive.extremes(torch.empty(0, 3), torch.rand(20, 3), 5, 8)[4].shape == (0, 8)
