"""The k largest latents are those of float32, though the product is in bf16; what is in doubt is computed anew."""

import pytest
import torch
from torch import Tensor

from sae.ops import TopK, encode, exact, native, topk
from sae.ops.native import topk as compiled

K = 8


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without tiles multiply bf16 too, only slowly."""
    if native.library() is None:
        pytest.skip("this machine has no C compiler")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(exact, "MIN_TOKENS", 1)
    monkeypatch.setattr(exact, "MIN_LATENTS", 64)


def drawn(tokens: int = 50, latents: int = 700, d: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(tokens, d), torch.randn(latents, d) * (0.1 + torch.rand(latents, 1)), torch.randn(latents)


def exactly(x: Tensor, W: Tensor, b: Tensor, k: int = K) -> Tensor:
    return (x.double() @ W.double().T + b.double()).topk(k).values.relu()


def close(values: Tensor, sorted_: Tensor) -> None:
    torch.testing.assert_close(values.double().sort(1, descending=True)[0], sorted_, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [0.0, 1.0, -3.0])
@pytest.mark.parametrize(("tokens", "latents", "d"), [(50, 700, 48), (1, 64, 5), (300, 1024, 16), (7, 4096, 64)])
def test_the_k_largest_are_those_of_float64(tokens: int, latents: int, d: int, bias: float) -> None:
    x, W, b = drawn(tokens, latents, d)
    assert exact.covers(x, W, b * bias, K)
    values, indices = encode(x, W, b * bias, TopK(K))
    close(values, exactly(x, W, b * bias))
    assert all(len(set(row)) == K for row in indices.tolist())
    pre_acts = torch.addmm(b * bias, x, W.T)
    torch.testing.assert_close(pre_acts.gather(1, indices).relu(), values, rtol=1e-5, atol=1e-5)


def test_latents_that_only_float32_tells_apart_are_told_apart() -> None:
    W = torch.ones(512, 16) + 1e-5 * torch.randperm(512).unsqueeze(1)
    x = torch.rand(20, 16) + 0.5
    values, indices = encode(x, W, torch.zeros(512), TopK(K))
    best = W[:, 0].topk(K).indices.sort().values
    assert torch.equal(indices.sort(1).values, best.expand(20, K))
    close(values, exactly(x, W, torch.zeros(512)))


def test_tokens_with_few_or_no_active_latents_are_whole() -> None:
    x, W, _ = drawn()
    for b in (torch.full((700,), -100.0), torch.where(torch.arange(700) < 5, 0.0, -100.0)):
        values, indices = encode(x, W, b, TopK(K))
        close(values, exactly(x, W, b))
        assert all(len(set(row)) == K for row in indices.tolist())


@pytest.mark.parametrize("factor", [1e-15, 1e-24, 1e-28, 1e-38])
@pytest.mark.parametrize("of_weights", [False, True])
def test_the_smallest_activations_have_the_latents_of_float64(factor: float, of_weights: bool) -> None:
    x, W, b = drawn()
    x, W = (x, W * factor) if of_weights else (x * factor, W)
    values, _ = encode(x, W, b * 0, TopK(K))
    true = exactly(x, W, b * 0)
    torch.testing.assert_close(values.double().sort(1, descending=True)[0], true, rtol=1e-4, atol=1e-40)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_stays_so(bad: float) -> None:
    x, W, b = drawn()
    x[3, 2] = bad
    values, _ = encode(x, W, b, TopK(K))
    plain, _ = topk(torch.addmm(b, x, W.T), K)
    assert torch.equal(values[3].isnan().any(), plain[3].isnan().any())
    rest = torch.arange(50) != 3
    close(values[rest], exactly(x[rest], W, b))


def test_how_tokens_are_split_changes_no_bit() -> None:
    x, W, b = drawn(300)
    whole = encode(x, W, b, TopK(K))
    parts = [encode(part, W, b, TopK(K)) for part in x.split(77)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = encode(x, W, b, TopK(K), chunk_bytes=2 * 700 * 64)
    finally:
        torch.set_num_threads(threads)
    for each, some, other in zip(whole, map(torch.cat, zip(*parts, strict=True)), threaded, strict=True):
        assert torch.equal(each, some) and torch.equal(each, other)


def test_a_threshold_leaves_the_latents_above_it() -> None:
    x, W, b = drawn()
    select = TopK(4 * K, torch.tensor(4.0))
    values, _ = encode(x, W, b, select)
    pre_acts = torch.addmm(b, x, W.T)
    assert torch.equal((values > 0).sum(1), (pre_acts > 4).sum(1).clamp(max=4 * K))


def test_small_or_other_products_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, b = drawn()
    assert not exact.covers(x.bfloat16(), W.bfloat16(), b.bfloat16(), K)
    assert not exact.covers(x, W, b, 0)
    assert not exact.covers(x, W, b, 400) and compiled.slices_of(700, 400) <= 1
    monkeypatch.setattr(exact, "MIN_TOKENS", 51)
    assert not exact.covers(x, W, b, K)
    assert exact.covers(torch.rand(60, 48), W, b, K)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert exact.covers(torch.rand(60, 48), W, b, K)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not exact.covers(torch.rand(60, 48), W, b, K)
