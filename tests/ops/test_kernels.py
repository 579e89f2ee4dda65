"""Every kernel equals its plain twin, at odd sizes. On a CPU triton interprets them.

`TRITON_INTERPRET=0 pytest tests/ops/test_kernels.py` compiles them, where there is a GPU.
"""

import math
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from sae import ops
from sae.ops import momentum as plain_momentum
from sae.ops import naive
from sae.ops.kernels import decode, momentum, segments, topk

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ["cpu"] if INTERPRETED else ["cuda"] if torch.cuda.is_available() else []
DTYPES = [torch.float32, torch.bfloat16]
SIZES = [(1, 48, 96, 1), (37, 48, 96, 5), (0, 48, 96, 5), (5, 7, 31, 31), (4, 300, 40, 20)]

pytestmark = pytest.mark.parametrize("device", DEVICES)
sizes = pytest.mark.parametrize(("tokens", "d", "latents", "k"), SIZES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


class Problem(NamedTuple):
    """Rows, a dictionary W and a code in which every token selects latent 0 and, if it can be, none the last five."""

    x: Tensor
    W: Tensor
    acts: Tensor
    indices: Tensor


def problem(tokens: int, d: int, latents: int, k: int, device: str, dtype: torch.dtype = torch.float32) -> Problem:
    """`dtype` is that of x and W; a fifth of the acts is 0."""
    choices = latents - 5 if k <= latents - 5 else latents
    rest = [torch.randperm(choices - 1)[: k - 1] + 1 for _ in range(tokens)]
    first = torch.zeros(tokens, 1, dtype=torch.int64)
    indices = torch.cat([first, torch.stack(rest)], 1) if tokens else torch.zeros(0, k, dtype=torch.int64)
    x, W = torch.randn(tokens, d).to(dtype), torch.randn(latents, d).to(dtype)
    acts = torch.rand(tokens, k).sub(0.2).relu()
    return Problem(*(t.to(device) for t in (x, W, acts, indices)))


def assert_as_exact(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """Our error against float64 is at most that of plain PyTorch, and a little."""
    assert found.dtype == plain.dtype and found.shape == plain.shape
    if found.numel() == 0:
        return
    error, allowed = ((t.double() - exact).abs().max() for t in (found, plain))
    assert error <= 1.5 * allowed + 2 * torch.finfo(found.dtype).eps * exact.abs().max(), (error, allowed)


# Decoding


@dtypes
@sizes
def test_decode_equals_its_twin(tokens: int, d: int, latents: int, k: int, device: str, dtype: torch.dtype) -> None:
    _, W, acts, indices = problem(tokens, d, latents, k, device, dtype)
    exact = naive.decode(acts.double(), indices, W.double())
    assert_as_exact(decode.decode(acts, indices, W), naive.decode(acts, indices, W), exact)


@dtypes
@sizes
def test_gather_dot_equals_its_twin(tokens: int, d: int, latents: int, k: int, device: str, dtype: torch.dtype) -> None:
    x, W, _, indices = problem(tokens, d, latents, k, device, dtype)
    exact = naive.gather_dot(x.double(), indices, W.double())
    plain = naive.gather_dot(x.float(), indices, W.float())
    assert_as_exact(decode.gather_dot(x.float(), indices, W), plain, exact)


def test_decode_and_gather_dot_answer_in_the_wider_type_of_the_two(device: str) -> None:
    x, W, acts, indices = problem(3, 48, 96, 5, device, torch.bfloat16)
    assert decode.decode(acts, indices, W).dtype == torch.float32
    rounded, exact = decode.gather_dot(x, indices, W), decode.gather_dot(x.float(), indices, W)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=2**-7, atol=0)


def test_decode_does_not_read_rows_whose_act_is_zero(device: str) -> None:
    _, W, acts, indices = problem(5, 48, 96, 5, device)
    acts[:, 0], W[0] = 0, float("nan")
    assert decode.decode(acts, indices, W).isfinite().all()


def test_decode_and_gather_dot_take_tensors_that_are_not_contiguous(device: str) -> None:
    x, W, acts, indices = problem(6, 48, 96, 4, device)
    strided = W.T.contiguous().T, x.repeat(1, 2)[:, ::2], acts[::2], indices[::2]
    plain = [t.contiguous() for t in strided]
    assert torch.equal(decode.decode(strided[2], strided[3], strided[0]), decode.decode(*plain[2:], plain[0]))
    rows = strided[1][::2]
    assert torch.equal(
        decode.gather_dot(rows, strided[3], strided[0]), decode.gather_dot(rows.contiguous(), plain[3], plain[0])
    )


# Sums over the tokens of each latent


def sum_pair(arguments: tuple[Tensor, ...], indices: Tensor, latents: int, piece: int | None) -> tuple[Tensor, ...]:
    """The kernels' sums, by what `LatentSegments` has sorted."""
    s = ops.LatentSegments(indices, latents)
    return segments.sum_pair(*arguments, latents=s._latents, order=s._order, bounds=s._bounds, piece=piece)


@dtypes
@pytest.mark.parametrize("piece", [None, 2])
@sizes
def test_pairs_of_segment_sums_equal_their_twins(
    tokens: int, d: int, latents: int, k: int, piece: int | None, device: str, dtype: torch.dtype
) -> None:
    x, _, acts, indices = problem(tokens, d, latents, k, device, dtype)
    rows_b, weights_b = torch.randn(tokens, d).to(x), torch.randn(tokens, k).to(acts)
    found = sum_pair((acts, x, weights_b, rows_b), indices, latents, piece)
    ones = torch.ones(tokens, 1).to(acts)
    terms = [(acts, x), (weights_b, rows_b), (weights_b, ones), (acts * weights_b, ones)]
    for one, (weights, rows) in zip(found, terms, strict=True):
        plain = naive.segment_sum(weights, indices, rows.float(), latents)
        exact = naive.segment_sum(weights.double(), indices, rows.double(), latents)
        assert_as_exact(one.reshape(plain.shape), plain, exact)


def test_pairs_of_segment_sums_are_bitwise_equal_from_run_to_run(device: str) -> None:
    x, _, acts, indices = problem(37, 48, 16, 5, device)
    first, second = (sum_pair((acts, x, acts, x), indices, 16, 4) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert torch.equal(first[0], first[1])


def test_a_pair_of_segment_sums_may_have_rows_of_two_types(device: str) -> None:
    x, _, acts, indices = problem(11, 48, 96, 5, device)
    a, b, *_ = sum_pair((acts, x.bfloat16(), acts, x), indices, 96, None)
    torch.testing.assert_close(a, naive.segment_sum(acts, indices, x.bfloat16().float(), 96))
    torch.testing.assert_close(b, naive.segment_sum(acts, indices, x, 96))


# Selection


def assert_is_topk(pre_acts: Tensor, k: int, values: Tensor, indices: Tensor) -> None:
    """The values are those of `naive.topk`, at distinct columns that hold them."""
    assert torch.equal(values.sort().values, naive.topk(pre_acts, k)[0].sort().values)
    assert torch.equal(pre_acts.gather(1, indices).relu(), values)
    assert (indices.diff(dim=1) > 0).all()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize(
    ("tokens", "latents", "k"), [(1, 8, 1), (6, 96, 5), (2, 1031, 3), (2, 700, 32), (1, 2049, 256), (0, 96, 5)]
)
def test_topk_is_exact(tokens: int, latents: int, k: int, device: str, dtype: torch.dtype) -> None:
    pre_acts = torch.randn(tokens, latents, device=device).to(dtype)
    assert_is_topk(pre_acts, k, *topk.topk(pre_acts, k))


@dtypes
def test_topk_is_exact_despite_ties_and_rows_without_positive_entries(device: str, dtype: torch.dtype) -> None:
    ties = torch.randint(-2, 4, (3, 200), device=device)
    negative = -torch.rand(1, 200, device=device) - 0.1
    few = torch.where(torch.arange(200, device=device) % 90 == 1, 1.0, negative)
    infinite = torch.where(torch.arange(200, device=device) % 60 == 7, math.inf, -math.inf)[None]
    pre_acts = torch.cat([ties, negative, few, infinite, negative * 0]).to(dtype)
    assert_is_topk(pre_acts, 9, *topk.topk(pre_acts, 9))


@dtypes
@pytest.mark.parametrize("latents", [96, 99])
def test_topk_of_a_row_does_not_see_the_next_row(latents: int, device: str, dtype: torch.dtype) -> None:
    pre_acts = torch.randn(3, latents, device=device)
    pre_acts[:, 0] = torch.tensor([100.0, 200.0, 300.0])
    pre_acts = pre_acts.to(dtype)
    assert_is_topk(pre_acts, 1, *topk.topk(pre_acts, 1))


@dtypes
def test_topk_keeps_every_nan_there_is_room_for(device: str, dtype: torch.dtype) -> None:
    pre_acts = torch.randn(4, 200, device=device).to(dtype)
    pre_acts[1, 100] = math.nan
    bits = pre_acts.view(topk.FORMATS[dtype].bits)
    bits[2, 7], bits[2, 199] = -1, torch.iinfo(bits.dtype).max  # the NaNs with the smallest and the largest bits
    pre_acts[3] = math.nan
    values, indices = topk.topk(pre_acts, 5)
    assert values.isnan().sum(1).tolist() == [0, 1, 2, 5]
    assert indices[2][values[2].isnan()].tolist() == [7, 199]
    finite = torch.nan_to_num(pre_acts[:3], 100.0)
    assert_is_topk(finite, 5, torch.nan_to_num(values[:3], 100.0), indices[:3])


def test_topk_covers_the_sizes_that_matter_and_refuses_others(device: str) -> None:
    assert topk.group_size(24_576, 32) == 32 and topk.group_size(131_072, 192) == 32
    assert all(topk.covers(latents, k) for latents in (4096, 24_576, 131_072, 2**20) for k in (1, 32, 64))
    assert not topk.covers(96, 64)
    with pytest.raises(ValueError, match="k=64 of 96"):
        topk.topk(torch.randn(1, 96, device=device), 64)


# An optimizer's passes


@pytest.mark.parametrize("skip", [0.0, 1.0])
@pytest.mark.parametrize(("tangent", "rated", "unit"), [(False, False, False), (True, True, True), (True, False, True)])
@pytest.mark.parametrize(("rows", "d"), [(1, 1), (5, 48), (37, 300), (0, 48)])
@dtypes
def test_an_optimizers_passes_equal_their_twins(
    rows: int, d: int, dtype: torch.dtype, tangent: bool, rated: bool, unit: bool, skip: float, device: str
) -> None:
    tensors = {
        "exp_avg": torch.randn(rows, d).to(dtype),
        "exp_avg_sq": torch.rand(rows),
        "gradient": torch.randn(rows, d),
        "along": torch.randn(rows),
        "parameter": torch.randn(rows, d),
        "rates": torch.rand(rows),
        "out": torch.full((rows, d), math.nan),
        "copy": torch.full((rows, d), math.nan),
    }
    if rows:
        tensors["exp_avg"][0], tensors["gradient"][0], tensors["along"][0], tensors["exp_avg_sq"][0] = 0, 0, 0, 0
    if skip:
        tensors["gradient"].fill_(math.inf)

    def passes(module: object, t: dict[str, Tensor]) -> Tensor:
        where = t["out"].device
        skipped, length = torch.tensor(skip, device=where), torch.tensor(0.3, device=where)
        total = module.momentum_(  # type: ignore[attr-defined]
            t["exp_avg"],
            t["exp_avg_sq"],
            t["gradient"],
            tangent=(t["along"], t["parameter"]) if tangent else None,
            rates=t["rates"] if rated else None,
            skip=skipped,
            beta1=0.7,
            beta2=0.9,
            epsilon=1e-9,
            out=t["out"],
        )
        module.descend_(  # type: ignore[attr-defined]
            t["parameter"], t["out"], length, skip=skipped, unit_rows=unit and not skip, copy=t["copy"]
        )
        return total

    plain, fast = ({name: t.to(where).clone() for name, t in tensors.items()} for where in ("cpu", device))
    totals = passes(plain_momentum, plain), passes(momentum, fast)
    torch.testing.assert_close(totals[1].cpu(), totals[0])
    for name, expected in plain.items():
        torch.testing.assert_close(fast[name].cpu(), expected, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}")
    if skip:
        assert all(torch.equal(fast[n].cpu(), tensors[n]) for n in ("exp_avg", "exp_avg_sq", "parameter"))


# Doors


def test_the_doors_hand_over_to_the_kernels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, acts, indices = problem(5, 48, 96, 4, device)
    monkeypatch.setattr("sae.ops.kernels.usable", lambda *_: True)
    assert torch.equal(ops.decode(acts, indices, W), decode.decode(acts, indices, W))
    assert torch.equal(ops.gather_dot(x, indices, W), decode.gather_dot(x, indices, W))
    pre_acts = x @ W.T
    assert all(map(torch.equal, ops.topk(pre_acts, 4), topk.topk(pre_acts, 4)))
    assert torch.equal(ops.topk(pre_acts, 80)[0].sort().values, naive.topk(pre_acts, 80)[0].sort().values)
    pairs = (acts, x, acts.square(), x.square())
    handed_over = ops.LatentSegments(indices, 96).sum_pair(*pairs)
    assert all(map(torch.equal, (part[:] for part in handed_over), sum_pair(pairs, indices, 96, None)))


def test_pairs_of_segment_sums_without_kernels_equal_the_single_sums(device: str) -> None:
    x, _, acts, indices = problem(37, 48, 96, 5, device)
    s = ops.LatentSegments(indices, 96)
    found = s.sum_pair(acts.double(), x.double(), acts.double().square(), x.double().square())
    torch.testing.assert_close(found.a[:], s.sum(acts.double(), x.double()))
    torch.testing.assert_close(found.b[:], s.sum(acts.double().square(), x.double().square()))
    torch.testing.assert_close(found.weights_b, s.sum_weights(acts.double().square()))
    torch.testing.assert_close(found.products, s.sum_weights(acts.double() ** 3))


def test_the_doors_open_without_triton(device: str) -> None:
    program = (
        "import sys; sys.modules['triton'] = None; import torch; from sae import ops; ops.topk(torch.ones(1, 8), 2)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
