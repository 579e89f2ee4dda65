"""The optimizer that caps the largest directions of a matrix's step."""

import pytest
import torch
from torch import Tensor

from sae.dictionary.shards import Unsharded
from sae.training import adam
from sae.training.capped_adam import RANK, CappedAdam, cholesky_qr

NO = torch.zeros(())


def gradients(latents: int, d_in: int, steps: int, common: float = 0.0) -> list[Tensor]:
    """Noise, and a direction that all rows share."""
    torch.manual_seed(0)
    shared = torch.randn(d_in)
    noise = [torch.randn(latents, d_in) for _ in range(steps)]
    return [1e-4 * (each + common * torch.randn(latents, 1) * shared) for each in noise]


def oracle(start: Tensor, grads: list[Tensor], lr: float, rates: Tensor, *, beta1: float, beta2: float) -> Tensor:
    """The docstring's formulas in float64, with the exact projections on the directions that are followed."""
    W, m, v = start.double(), torch.zeros_like(start).double(), torch.zeros(len(start), 1).double()
    basis = CappedAdam({"w": start.clone()}, beta1=beta1, beta2=beta2).basis["w"].double()
    for grad in grads:
        m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad.double().square().mean(1, keepdim=True)
        U = m / (v.sqrt() + adam.EPSILON).sqrt() * rates.double()[:, None]
        basis = torch.linalg.qr(U.T @ U @ basis).Q
        outside = U - U @ basis @ basis.T
        mean = outside.square().sum() / (basis.shape[0] - basis.shape[1])
        mean = max(mean, 1e-3 * U.square().sum() / basis.shape[0]).sqrt()
        for q in basis.T:
            U = U - (1 - (mean / (U @ q).norm().clamp_min(1e-30)).clamp_max(1)) * torch.outer(U @ q, q)
        W = W - lr * U / U.square().mean().sqrt()
    return W


@pytest.mark.parametrize("rows_bytes", [2**20, 200])
@pytest.mark.parametrize(("latents", "d_in"), [(37, 48), (96, 12), (15, 40)])
def test_a_step_is_the_formula(latents: int, d_in: int, rows_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(adam._ROWS_BYTES, "cpu", rows_bytes)
    grads, start = gradients(latents, d_in, 5, common=3.0), torch.randn(latents, d_in)
    rates = torch.linspace(0.1, 1, latents)
    weights = {"w": start.clone()}
    optimizer = CappedAdam(weights, beta1=0.7, beta2=0.9)
    optimizer.row_rates, optimizer.rates = {"w": rates}, {"w": 0.5}
    for grad in grads:
        optimizer.step({"w": grad}, 2e-2, skip=NO)
    expected = oracle(start, grads, 1e-2, rates, beta1=0.7, beta2=0.9)
    torch.testing.assert_close(weights["w"].double(), expected, atol=2e-6, rtol=1e-5)


def test_the_learning_rate_is_the_length_of_a_step_and_no_direction_is_longer_than_the_others() -> None:
    grads = gradients(512, 32, 12, common=30.0)
    weights = {"w": torch.zeros(512, 32)}
    optimizer = CappedAdam(weights, beta1=0.0, beta2=0.9)
    for grad in grads:
        before = weights["w"].clone()
        optimizer.step({"w": grad}, 1e-3, skip=NO)
        step = weights["w"] - before
        assert step.square().mean().sqrt().item() == pytest.approx(1e-3, rel=1e-3)
    lengths, plain = torch.linalg.svdvals(step), torch.linalg.svdvals(grad)
    assert plain[0] > 10 * plain[1]
    assert lengths[0] < 2 * lengths.median()


def test_vectors_are_adams_and_a_matrix_narrower_than_four_is_only_normalised() -> None:
    torch.manual_seed(0)
    for shape in ((7,), (5, 3)):
        start, grad = torch.randn(shape), torch.randn(shape)
        mine, adams = {"p": start.clone()}, {"p": start.clone()}
        CappedAdam(mine, beta1=0.7, beta2=0.9).step({"p": grad}, 1e-2, skip=NO)
        adam.Adam(adams, beta1=0.7, beta2=0.9).step({"p": grad}, 1e-2, skip=NO)
        if len(shape) == 1:
            assert torch.equal(mine["p"], adams["p"])
        else:
            raised = grad / grad.norm(dim=1, keepdim=True).sqrt()
            expected = start - 1e-2 * raised / raised.square().mean().sqrt()
            torch.testing.assert_close(mine["p"], expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_skipped_step_changes_nothing_whatever_the_gradient(bad: float) -> None:
    weights = {"w": torch.randn(37, 48)}
    optimizer = CappedAdam(weights, beta1=0.7, beta2=0.9)
    good, other = gradients(37, 48, 2)
    optimizer.step({"w": good}, 1e-2, skip=NO)
    before = {name: t.clone() for name, t in (optimizer.state_dict() | weights).items()}
    other[3, 5] = bad
    optimizer.step({"w": other}, 1e-2, skip=torch.ones(()))
    assert all(torch.equal(t, before[name]) for name, t in (optimizer.state_dict() | weights).items())


@pytest.mark.parametrize("rows_bytes", [2**20, 200])
def test_a_follower_takes_its_share_of_a_step_beside_its_own(rows_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(adam._ROWS_BYTES, "cpu", rows_bytes)
    start, (first, second) = torch.randn(37, 48), gradients(37, 48, 2)
    found = {}
    for share in (0.0, 0.3):
        weights = {"leader": start.clone(), "follower": start.clone()}
        optimizer = CappedAdam(weights, beta1=0.7, beta2=0.9, followers={"leader": ("follower", share)})
        optimizer.copies["follower"] = torch.zeros(37, 48, dtype=torch.bfloat16)
        optimizer.step({"leader": first, "follower": second}, 1e-2, skip=NO)
        assert torch.equal(optimizer.copies["follower"], weights["follower"].bfloat16())
        found[share] = {name: weight - start for name, weight in weights.items()}
    assert torch.equal(found[0.0]["leader"], found[0.3]["leader"])
    expected = found[0.0]["follower"] + 0.3 * found[0.0]["leader"]
    torch.testing.assert_close(found[0.3]["follower"], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rows_bytes", [2**20, 200])
def test_the_length_of_rows_has_a_step_of_its_own(rows_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(adam._ROWS_BYTES, "cpu", rows_bytes)
    start, signs = torch.randn(37, 48), torch.randn(37).sign()
    weights = {"length": torch.zeros(37), "w": start.clone()}
    optimizer = CappedAdam(weights, beta1=0.7, beta2=0.9, log_lengths={"w": "length"})
    optimizer.rates["length"] = 3.0
    for _ in range(2):
        optimizer.step({"length": signs, "w": torch.zeros(37, 48)}, 1e-2, skip=NO)
        optimizer.step({"length": signs, "w": torch.zeros(37, 48)}, 1e-2, skip=torch.ones(()))
        assert torch.equal(weights["length"], torch.zeros(37))
    expected = start * torch.exp(-2 * 3e-2 * signs)[:, None]  # Adam's step down a gradient that stays is ±lr
    torch.testing.assert_close(weights["w"], expected)


def test_no_gradient_moves_nothing() -> None:
    weights = {"w": torch.ones(37, 48)}
    optimizer = CappedAdam(weights, beta1=0.7, beta2=0.9)
    for _ in range(3):
        optimizer.step({"w": torch.zeros(37, 48)}, 1e-2, skip=NO)
    assert torch.equal(weights["w"], torch.ones(37, 48))
    assert all(t.isfinite().all() for t in optimizer.state_dict().values())


def test_a_step_in_bfloat16_is_close_and_only_the_first_moment_of_a_matrix_is_held_in_it() -> None:
    grads, start = gradients(96, 48, 4, common=3.0), torch.randn(96, 48)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        weights = {"w": start.clone()}
        optimizer = CappedAdam(weights, beta1=0.7, beta2=0.9, product_dtype=dtype)
        for grad in grads:
            optimizer.step({"w": grad}, 1e-2, skip=NO)
        found[dtype] = weights["w"] - start
        types = {name: t.dtype for name, t in optimizer.state_dict().items()}
        assert types.pop("w.exp_avg") == dtype and set(types.values()) == {weights["w"].dtype} == {torch.float32}
    difference = (found[torch.bfloat16] - found[torch.float32]).norm() / found[torch.float32].norm()
    assert difference < 0.02


@pytest.mark.parametrize("rank_of_gradient", [0, 1, 5, 24, 96])
def test_directions_from_a_cholesky_factor_are_those_of_a_qr(rank_of_gradient: int) -> None:
    before = torch.linalg.qr(torch.randn(96, 24)).Q
    gradient = torch.randn(300, rank_of_gradient) @ torch.randn(rank_of_gradient, 96)
    columns = gradient.T @ gradient @ before
    found = cholesky_qr(columns, before)
    torch.testing.assert_close(found.T @ found, torch.eye(24), atol=2e-5, rtol=0)
    spanned = torch.linalg.svd(columns).U[:, :rank_of_gradient]
    missed = spanned - found @ (found.T @ spanned)
    assert rank_of_gradient > 24 or (missed.norm(dim=0) < 1e-3).all()
    if rank_of_gradient == 0:
        torch.testing.assert_close(found, before, atol=1e-5, rtol=0)


class Halves(Unsharded):
    """Two holders in one process: what one adds up waits for the other, as in lockstep."""

    def __init__(self, other: list[Tensor]) -> None:
        self.mine: list[Tensor] = []
        self.other = other

    def total(self, number: int) -> int:
        return 2 * number

    def sum_(self, partial: Tensor) -> Tensor:
        self.mine.append(partial.clone())
        if len(self.mine) <= len(self.other):
            partial.add_(self.other[len(self.mine) - 1])
        return partial


def test_the_sums_over_rows_that_others_hold_make_their_step_that_of_the_whole() -> None:
    (grad,), start = gradients(64, 48, 1, common=3.0), torch.randn(64, 48)
    whole = {"w": start.clone()}
    CappedAdam(whole, beta1=0.7, beta2=0.9).step({"w": grad}, 1e-2, skip=NO)
    sums: list[list[Tensor]] = [[], []]
    for _ in range(3):  # each knows the other's sums one exchange further than the time before
        halves, shards = [], [Halves(sums[1]), Halves(sums[0])]
        for half, each in enumerate(shards):
            rows = slice(32 * half, 32 * half + 32)
            part = {"w": start[rows].clone()}
            CappedAdam(part, beta1=0.7, beta2=0.9, shards=each).step({"w": grad[rows]}, 1e-2, skip=NO)
            halves.append(part["w"])
        sums = [each.mine for each in shards]
    assert [len(each) for each in sums] == [2, 2]
    torch.testing.assert_close(torch.cat(halves), whole["w"], atol=1e-6, rtol=1e-5)


def test_at_most_a_quarter_of_the_directions_is_followed() -> None:
    ranks = {d_in: CappedAdam({"w": torch.zeros(2, d_in)}, beta2=0.9, beta1=0.9).basis["w"].shape for d_in in (3, 40)}
    assert ranks == {3: (3, 0), 40: (40, 10)} and RANK == 128
    assert CappedAdam({"w": torch.zeros(2, 768)}, beta2=0.9, beta1=0.9).basis["w"].shape == (768, RANK)


@pytest.mark.parametrize("every", [1, 4])
def test_directions_are_followed_by_eight_rows_for_each_dimension(every: int) -> None:
    """Rows are alike, so that every fourth shows which directions are common to all."""
    rows, d_in, common = every * 8 * 48, 48, 5
    optimizer = CappedAdam({"w": torch.randn(rows, d_in)}, beta1=0.0, beta2=0.9)
    assert optimizer._strides == {"w": every}
    directions = torch.linalg.qr(torch.randn(d_in, common)).Q
    for _ in range(20):
        grad = 10 * torch.randn(rows, common) @ directions.T + torch.randn(rows, d_in)
        optimizer.step({"w": grad}, 1e-6, skip=NO)
    assert ((optimizer.basis["w"].T @ directions).square().sum(0) > 0.99).all()


def test_fewer_rows_than_eight_for_each_dimension_are_all_followed() -> None:
    assert CappedAdam({"w": torch.zeros(4608, 576)}, beta1=0.9, beta2=0.9)._strides == {"w": 1}
    assert CappedAdam({"w": torch.zeros(18432, 576)}, beta1=0.9, beta2=0.9)._strides == {"w": 4}
    assert CappedAdam({"w": torch.zeros(3, 576)}, beta1=0.9, beta2=0.9)._strides == {"w": 1}
