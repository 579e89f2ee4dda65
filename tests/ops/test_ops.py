"""Every operation equals its plain twin, at odd sizes, forward and every gradient."""

from functools import partial

import pytest
import torch
from torch import Tensor

from sae import ops
from sae.ops import naive
from sae.ops.autograd import DecodeFunction, EncodeFunction

SIZES = [(1, 48, 96, 1), (37, 48, 96, 5), (150, 48, 96, 5), (37, 7, 31, 31), (0, 48, 96, 5), (13, 48, 1024, 32)]
sizes = pytest.mark.parametrize(("tokens", "d", "latents", "k"), SIZES)


def problem(tokens: int, d: int, latents: int, k: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Activations x, a dictionary W, and a code (acts, indices) with Zipf-like popularity and some zeros."""
    popularity = 1 / torch.arange(1, latents + 1, dtype=torch.float64)
    indices = (
        torch.stack([torch.multinomial(popularity, k) for _ in range(tokens)]) if tokens else torch.empty(0, k).long()
    )
    x, W = torch.randn(tokens, d, dtype=dtype), torch.randn(latents, d, dtype=dtype)
    return x, W, torch.rand(tokens, k, dtype=dtype).sub(0.2).relu(), indices


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("tokens", "latents", "k"), [(1, 8, 8), (37, 96, 5), (5, 1031, 3), (9, 4608, 32), (0, 96, 5)])
def test_topk_is_exact(tokens: int, latents: int, k: int, dtype: torch.dtype) -> None:
    pre_acts = torch.randn(tokens, latents).to(dtype)
    values, indices = ops.topk(pre_acts, k)
    expected = naive.topk(pre_acts, k)[0]
    assert torch.equal(values.sort().values, expected.sort().values)
    assert torch.equal(pre_acts.gather(1, indices).relu(), values)
    assert all(len(set(row.tolist())) == k for row in indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_topk_of_wide_rows_is_exact(dtype: torch.dtype) -> None:
    pre_acts = torch.randn(3, 2**17).to(dtype)
    assert torch.equal(ops.topk(pre_acts, 64)[0].sort().values, naive.topk(pre_acts, 64)[0].sort().values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_topk_of_rows_without_positive_entries_is_zero_at_distinct_indices(dtype: torch.dtype) -> None:
    values, indices = ops.topk(-torch.rand(11, 512).to(dtype) - 0.1, 7)
    assert torch.equal(values, torch.zeros(11, 7, dtype=dtype))
    assert all(len(set(row.tolist())) == 7 for row in indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_topk_keeps_every_entry_that_is_larger_than_all_it_drops_despite_ties(dtype: torch.dtype) -> None:
    pre_acts = torch.randint(-2, 4, (19, 640)).to(dtype)
    assert torch.equal(ops.topk(pre_acts, 9)[0].sort().values, naive.topk(pre_acts, 9)[0].sort().values)


def test_topk_lets_nan_through() -> None:
    pre_acts = torch.randn(4, 512)
    pre_acts[2, 100] = float("nan")
    values, _ = ops.topk(pre_acts, 5)
    assert values.isnan().any(1).tolist() == [False, False, True, False]


def test_permuting_latents_permutes_the_indices_of_topk() -> None:
    pre_acts, order = torch.randn(37, 512), torch.randperm(512)
    _, indices = ops.topk(pre_acts, 5)
    _, permuted = ops.topk(pre_acts[:, order], 5)
    assert torch.equal(order[permuted].sort().values, indices.sort().values)


@sizes
def test_encode_equals_the_whole_product_at_any_chunk_size(tokens: int, d: int, latents: int, k: int) -> None:
    x, W, _, _ = problem(tokens, d, latents, k)
    b = torch.randn(latents, dtype=torch.float64)
    expected = naive.topk(x @ W.T + b, k)[0].sort().values
    for rows_per_chunk in (64, 128, 10_000):
        values, indices = ops.encode(x, W, b, partial(ops.topk, k=k), chunk_bytes=rows_per_chunk * latents * 8)
        torch.testing.assert_close(values.sort().values, expected)
        torch.testing.assert_close((x @ W.T + b).gather(1, indices).relu(), values)


@sizes
def test_decode_gather_dot_and_segment_sums_equal_their_twins(tokens: int, d: int, latents: int, k: int) -> None:
    x, W, acts, indices = problem(tokens, d, latents, k)
    torch.testing.assert_close(ops.decode(acts, indices, W), naive.decode(acts, indices, W))
    torch.testing.assert_close(ops.gather_dot(x, indices, W), naive.gather_dot(x, indices, W))
    segments = ops.LatentSegments(indices, latents)
    torch.testing.assert_close(segments.sum(acts, x), naive.segment_sum(acts, indices, x, latents))
    ones = torch.ones(tokens, 1, dtype=torch.float64)
    torch.testing.assert_close(segments.sum_weights(acts), naive.segment_sum(acts, indices, ones, latents)[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_against_float64_are_no_larger_than_those_of_plain_pytorch(dtype: torch.dtype) -> None:
    x, W, acts, indices = problem(64, 48, 256, 16, dtype)
    pairs = [
        (ops.decode, naive.decode, (acts, indices, W)),
        (ops.gather_dot, naive.gather_dot, (x, indices, W)),
    ]
    for fast, plain, arguments in pairs:
        exact = plain(*(a.double() if a.is_floating_point() else a for a in arguments))
        error, allowed = ((f(*arguments).double() - exact).abs().max() for f in (fast, plain))
        assert error <= allowed * 1.5 + torch.finfo(dtype).eps


@sizes
def test_gradients_through_encode_equal_autograd(tokens: int, d: int, latents: int, k: int) -> None:
    leaves = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((tokens, d), (latents, d), (latents,))]
    x, W, b = leaves
    weights = torch.randn(tokens, k, dtype=torch.float64)
    values, indices = EncodeFunction.apply(x, W, b, partial(ops.topk, k=k))
    dense = (x @ W.T + b).gather(1, indices).relu()
    found = torch.autograd.grad((values * weights).sum(), leaves)
    expected = torch.autograd.grad((dense * weights).sum(), leaves)
    for name, one, other in zip("xWb", found, expected, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"gradient of {name}: {text}")


@sizes
def test_gradients_through_decode_equal_autograd(tokens: int, d: int, latents: int, k: int) -> None:
    _, W, acts, indices = problem(tokens, d, latents, k)
    leaves, weights = (acts.requires_grad_(), W.requires_grad_()), torch.randn(tokens, d, dtype=torch.float64)
    found = torch.autograd.grad((DecodeFunction.apply(acts, indices, W) * weights).sum(), leaves)
    expected = torch.autograd.grad((naive.decode(acts, indices, W) * weights).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_segment_sums_are_bitwise_equal_from_run_to_run() -> None:
    x, _, acts, indices = problem(512, 48, 96, 5, torch.float32)
    first, second = (ops.LatentSegments(indices, 96).sum(acts, x) for _ in range(2))
    assert torch.equal(first, second)


def test_rows_of_segment_sums_are_those_of_the_whole_bit_for_bit() -> None:
    x, _, acts, indices = problem(64, 48, 96, 5, torch.float32)
    indices = indices.masked_fill((indices > 20) & (indices < 30), 3)  # some latents never fire
    segments = ops.LatentSegments(indices, 96)
    rows, dead, more = segments.rows(acts, x), torch.tensor([0, 21, 22, 95]), torch.randn(4, 48)
    whole = segments.sum(acts, x)
    for first, end in ((0, 96), (0, 1), (20, 31), (21, 30), (90, 200), (96, 96)):
        assert torch.equal(rows[first:end], whole[first:end])
    rows.index_add_(0, dead, more)
    rows.index_add_(0, dead[:1], more[:1])
    whole.index_add_(0, dead, more).index_add_(0, dead[:1], more[:1])
    for first, end in ((0, 96), (0, 1), (1, 22), (22, 96), (23, 95)):
        assert torch.equal(rows[first:end], whole[first:end])
    none = ops.LatentSegments(indices[:0], 96).rows(acts[:0], x[:0])
    assert torch.equal(none[3:9], torch.zeros(6, 48))
