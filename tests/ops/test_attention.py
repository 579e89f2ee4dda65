"""Attention in C is softmax attention as exactly as PyTorch's in bf16, whatever the shapes, strides and threads."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from sae.ops.native.attention import attend, covers, has_attention

pytestmark = pytest.mark.skipif(not has_attention(), reason="no C compiler here, or a processor without AVX512-BF16")

SHAPES = [  # (batch, heads, heads of keys, seq, width)
    (2, 3, 3, 1, 16),
    (1, 4, 1, 3, 32),
    (3, 4, 2, 77, 80),
    (2, 9, 3, 256, 64),
    (1, 2, 2, 300, 96),
    (1, 2, 1, 513, 256),
    (1, 1, 1, 1100, 128),
]


def heads_of(batch: int, heads: int, seq: int, width: int, scale: float = 1.0) -> Tensor:
    """(batch, heads, seq, width) as models make them: seen from (batch, seq, heads, width)."""
    return (scale * torch.randn(batch, seq, heads, width)).bfloat16().transpose(1, 2)


def given(batch: int, heads: int, kv_heads: int, seq: int, width: int, scale: float = 1.0) -> list[Tensor]:
    torch.manual_seed(0)
    return [heads_of(batch, h, seq, width, scale) for h in (heads, kv_heads, kv_heads)]


def exact(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> Tensor:
    """(batch, seq, heads, width) in float64, by the formula."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = scale * q @ k.mT
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_near_to_the_formula_as_pytorch(shape: tuple[int, ...], causal: bool) -> None:
    for size, scale in ((1.0, shape[-1] ** -0.5), (5.0, 0.3)):  # weights that are spread, and weights of few
        q, k, v = given(*shape, size)
        expected = exact(q, k, v, causal=causal, scale=scale)
        theirs = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)
        found = attend(q, k, v, scale=scale, causal=causal)
        assert found.shape == expected.shape and found.dtype == torch.bfloat16
        assert error(found, expected) < 1.02 * error(theirs.transpose(1, 2), expected) + 1e-4


def test_any_number_of_threads_and_of_sequences_gives_the_same_bits() -> None:
    q, k, v = given(3, 4, 2, 333, 64)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(attend(q, k, v, scale=0.1, causal=True))
    finally:
        torch.set_num_threads(before)
    alone = torch.cat([attend(q[i : i + 1], k[i : i + 1], v[i : i + 1], scale=0.1, causal=True) for i in range(3)])
    assert all(torch.equal(results[0], other) for other in (*results[1:], alone))
    shorter = attend(q[:, :, :200], k[:, :, :200], v[:, :, :200], scale=0.1, causal=True)
    assert torch.equal(shorter, results[0][:, :200])
    dense = attend(*(x.contiguous() for x in (q, k, v)), scale=0.1, causal=True)
    assert torch.equal(dense, results[0])


@pytest.mark.parametrize("causal", [True, False])
def test_nothing_beside_the_tensors_is_read_or_written(causal: bool) -> None:
    whole = [torch.full((2, 71, 3, 48), float("nan")).bfloat16() for _ in range(3)]
    inner = [x[:, 1:-1, 1:2, 8:40].transpose(1, 2) for x in whole]
    for x in inner:
        x.copy_(torch.randn(x.shape))
    found = attend(*inner, scale=0.2, causal=causal)
    assert torch.equal(found, attend(*(x.contiguous() for x in inner), scale=0.2, causal=causal))
    assert found.isfinite().all() and whole[0].isnan().sum() == whole[0].numel() - inner[0].numel()


def test_a_key_that_is_no_number_reaches_those_that_hear_it_and_no_others() -> None:
    q, k, v = given(1, 2, 2, 150, 32)
    k[0, 1, 70, 3] = float("nan")
    found = attend(q, k, v, scale=0.2, causal=True)[0]
    assert found[:, 0].isfinite().all() and found[:70, 1].isfinite().all() and found[70:, 1].isnan().all()


@pytest.mark.parametrize("silent", [64, 256, 299])
def test_keys_of_score_minus_infinity_are_not_heard(silent: int) -> None:
    q, k, v = given(1, 1, 1, 300, 32)
    q[..., 0] = 1
    k[:, :, :silent, 0] = -torch.inf
    found = attend(q, k, v, scale=0.2, causal=False)
    expected = exact(q, k[:, :, silent:], v[:, :, silent:], causal=False, scale=0.2)
    assert error(found, expected) < 0.01
    k[..., 0] = -torch.inf
    assert attend(q, k, v, scale=0.2, causal=False).isnan().all()


@pytest.mark.parametrize("size", [60.0, 3000.0])
def test_scores_of_any_size_pick_the_value_of_the_largest(size: float) -> None:
    torch.manual_seed(0)
    q, v = torch.eye(64)[None, None].bfloat16(), torch.randn(1, 1, 64, 64).bfloat16()
    found = attend(size * q, size * q, v, scale=1.0, causal=True)
    assert torch.equal(found[0, :, 0], v[0, 0])


def test_equal_scores_give_the_mean_of_what_is_heard() -> None:
    v = torch.arange(700.0)[None, None, :, None].expand(1, 1, 700, 16).bfloat16()
    zero = torch.zeros(1, 1, 700, 16).bfloat16()
    expected = v[0, 0].double().cumsum(0) / torch.arange(1, 701)[:, None]
    found = attend(zero, zero, v, scale=1.0, causal=True)[0, :, 0]
    assert ((found.double() - expected).abs() <= 2**-8 * expected).all()


def test_what_it_does_not_take() -> None:
    q, k, v = given(1, 4, 2, 8, 32)
    assert covers(q, k, v)
    for others in (
        (q.float(), k.float(), v.float()),
        (q, k[:, :, :4], v[:, :, :4]),  # fewer keys, as with a cache
        (q, k, v[..., :16]),
        (q[..., :24], k[..., :24], v[..., :24]),  # no multiple of 16
        (q[:, :3], k, v),
        (q[..., ::2], k[..., ::2], v[..., ::2]),
        (q[0], k[0], v[0]),
        (q[:, :, :0], k[:, :, :0], v[:, :, :0]),
        (q.to("meta"), k.to("meta"), v.to("meta")),
    ):
        assert not covers(*others)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_traced_or_transformed_is_left_to_pytorch() -> None:
    q, k, v = given(1, 4, 2, 8, 32)
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(covers(q, k, v))
        return x

    torch.jit.trace(look, torch.ones(2), check_trace=False)  # type: ignore[no-untyped-call]
    torch.vmap(look)(torch.ones(2, 2))
    torch.func.jvp(look, (torch.ones(2),), (torch.ones(2),))
    make_fx(look)(torch.ones(2))
    with torch.autocast("cpu", torch.float16):
        look(q)
    with forward_ad.dual_level():
        look(q)
    assert seen == [False] * 6 and covers(q, k, v)
