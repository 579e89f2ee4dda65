"""Candidates from products in 8 bits, with exact scores."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sae.ops.native as compiled
from sae import Sae, SaeConfig, ops
from sae.ops import eight_bit, naive
from sae.ops.native import eight_bit as native
from sae.training.learner import SaeLearner

PRODUCTS = {"int8": eight_bit.Int8Product, "fp8": eight_bit.Fp8Product}


@pytest.fixture(params=["compiled", *PRODUCTS])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All products run on a CPU; which one is used follows from the device, and from whether there is a compiler."""
    if request.param == "compiled":
        needs_compiled()
        return request.param
    monkeypatch.setattr(native, "has_product", lambda: False)
    monkeypatch.setattr(eight_bit, "Int8Product", PRODUCTS[request.param])
    if request.param == "int8":
        try:
            eight_bit.check_has_product(torch.device("cpu"))
        except ValueError as reason:
            pytest.skip(str(reason))
    else:
        try:
            eight_bit.candidates(*problem(1, 48, 96), 5)
        except NotImplementedError:
            pytest.skip("this version of torch multiplies fp8 on GPUs only, as tests/training/test_cuda.py does")
    return request.param


def needs_compiled() -> None:
    if not native.has_product():
        pytest.skip("no processor with the product, or no compiler that knows it")


def problem(tokens: int, d_in: int, latents: int) -> tuple[Tensor, Tensor, Tensor]:
    """Activations with outlier dimensions and tokens of very different length, as language models have."""
    generator = torch.Generator().manual_seed(tokens + latents)
    x = torch.randn(tokens, d_in, generator=generator) * torch.rand(tokens, 1, generator=generator).mul(3).exp()
    x[:, :2] *= 30
    W = F.normalize(torch.randn(latents, d_in, generator=generator), dim=1)
    return x, W, torch.randn(latents, generator=generator) * 0.3


@pytest.mark.parametrize(("tokens", "d_in", "latents", "k"), [(1, 48, 96, 5), (37, 48, 512, 7), (300, 64, 4096, 32)])
def test_nearly_all_of_the_largest_latents_are_found(
    tokens: int, d_in: int, latents: int, k: int, product: str
) -> None:
    assert eight_bit.recall(*problem(tokens, d_in, latents), k) > 0.995


@pytest.mark.parametrize(("tokens", "d_in", "latents", "k"), [(1, 48, 96, 5), (37, 48, 512, 7), (300, 64, 4096, 32)])
def test_what_is_found_has_its_exact_value(tokens: int, d_in: int, latents: int, k: int, product: str) -> None:
    x, W, b = problem(tokens, d_in, latents)
    values, indices = eight_bit.encode(x, W, b, partial(ops.topk, k=k), k=k)
    exact = (x.double() @ W.double().T + b).relu()
    torch.testing.assert_close(values.double(), exact.gather(1, indices), atol=2e-5 * exact.max().item(), rtol=1e-5)
    assert all(len(set(row.tolist())) == k for row in indices)


def test_where_every_latent_is_a_candidate_the_result_is_exact(product: str) -> None:
    x, W, b = problem(37, 48, 40)
    values, _ = eight_bit.encode(x, W, b, partial(ops.topk, k=32), k=32)
    expected, _ = naive.topk(x @ W.T + b, 32)
    torch.testing.assert_close(values.sort().values, expected.sort().values, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["no tokens", "zeros", "one zero token", "a dimension that is always 0"])
def test_degenerate_activations_are_encoded_too(kind: str, product: str) -> None:
    x, W, b = problem(20, 48, 256)
    x = {"no tokens": x[:0], "zeros": x * 0, "one zero token": x.index_fill(0, torch.tensor(3), 0)}.get(kind, x)
    if kind.startswith("a dimension"):
        x[:, 5] = 0
    values, indices = eight_bit.encode(x, W, b, partial(ops.topk, k=8), k=8)
    assert values.shape == indices.shape == (len(x), 8)
    torch.testing.assert_close(values, (x @ W.T + b).relu().gather(1, indices), atol=1e-3, rtol=1e-4)


def test_the_recall_counts_what_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, b = problem(10, 48, 256)
    best = (x @ W.T + b).topk(8).indices
    wrong = best.clone()
    wrong[:, 0] = (x @ W.T + b).argmin(1)
    monkeypatch.setattr(eight_bit, "candidates", lambda *_: wrong)
    assert eight_bit.recall(x, W, b, 8).item() == pytest.approx(7 / 8)


@pytest.mark.skipif(eight_bit._lacks_product(torch.device("cpu")) is not None, reason="a processor without the product")
def test_training_in_8_bits_is_training_in_float32_to_a_few_latents() -> None:
    x = problem(256, 48, 256)[0]
    fvus = []
    for encode_in_8bit in (False, True):
        sae = Sae(48, SaeConfig(num_latents=256, k=8), generator=torch.Generator().manual_seed(0))
        learner = SaeLearner(
            sae, tokens_per_step=256, auxk_alpha=0.0, dead_feature_threshold=10**7,
            compute_dtype=torch.float32, encode_in_8bit=encode_in_8bit,
        )  # fmt: skip
        learner.initialise(x)
        for _ in range(30):
            learner.accumulate(x)
            learner.update(1e-3)
        fvus.append(learner.read_metrics().fvu)
        recall = learner.read_recall()
        assert recall is None or recall > 0.97
        assert (recall is None) != encode_in_8bit
    assert fvus[1] == pytest.approx(fvus[0], rel=0.01)


@pytest.mark.parametrize(
    ("num_latents", "tokens", "compiled", "device", "has_vnni", "has_amx", "expected"),
    [
        (8192, 2048, False, "cpu", True, False, True),
        (8191, 2048, False, "cpu", True, False, False),
        (8192, 2047, False, "cpu", True, False, False),
        (4096, 1024, True, "cpu", False, False, True),
        (4095, 4096, True, "cpu", True, False, False),
        (8192, 511, True, "cpu", True, False, False),
        (10**6, 10**6, True, "cpu", True, True, False),
        (10**6, 10**6, False, "cpu", False, False, False),
        (10**6, 10**6, True, "cuda", True, False, False),
    ],
)
def test_it_is_used_by_itself_where_it_was_measured_to_be_faster(
    num_latents: int,
    tokens: int,
    compiled: bool,
    device: str,
    has_vnni: bool,
    has_amx: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "has_product", lambda: compiled)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_vnni)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    assert eight_bit.pays(num_latents, tokens, torch.device(device)) == expected


def test_a_device_without_the_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "has_product", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ValueError, match="no AVX512-VNNI and no AVX-VNNI; leave out --encode_in_8bit"):
        eight_bit.check_has_product(torch.device("cpu"))
    with pytest.raises(ValueError, match="there is none for mps"):
        eight_bit.check_has_product(torch.device("mps"))


# In C


def scores(x: Tensor, W: Tensor, b: Tensor, columns: Tensor) -> Tensor:
    """Pre-activations in 8 bits, in float64."""

    def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
        units = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(1e-37)
        return (rows * (1 / units)).round().double(), units.double()

    (x_codes, x_units), (W_codes, W_units) = rounded(x * (1 / columns)), rounded(W * columns)
    return x_codes @ W_codes.T * x_units * W_units.T + b


SIZES = [(1, 5, 40, 3), (37, 48, 513, 7), (14, 64, 32, 32), (15, 63, 33, 33), (300, 64, 4096, 48), (9, 2, 7, 1)]


@pytest.mark.parametrize(("tokens", "d_in", "latents", "count"), SIZES)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_the_compiled_product_keeps_the_largest(tokens: int, d_in: int, latents: int, count: int, scale: float) -> None:
    needs_compiled()
    (x, W, b), columns = problem(tokens, d_in, latents), torch.rand(d_in) + 0.5
    x, b = x * scale, b * scale
    found, exact = native.candidates(x, W, b, columns, count), scores(x, W, b, columns)
    assert all(len(set(row.tolist())) == count for row in found)
    kept, best = exact.gather(1, found).sort().values, exact.topk(count).values.flip(1)
    torch.testing.assert_close(kept, best, rtol=1e-5, atol=1e-5 * scale)


def test_the_compiled_product_is_the_same_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiled()
    x, W, b = problem(300, 64, 1000)
    found = [native.candidates(x, W, b, torch.ones(64), 48)]
    for number in (1, 2, 3):
        for team in (True, False):
            monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
            monkeypatch.setattr("sae.ops.native.has_team", lambda team=team: team)
            found.append(native.candidates(x, W, b, torch.ones(64), 48))
    assert all(torch.equal(each, found[0]) for each in found)


def test_the_compiled_product_of_8_lanes_is_that_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without AVX512 have half as many."""
    needs_compiled()
    x, W, b = problem(300, 64, 1000)
    wide, panel = native.candidates(x, W, b, torch.ones(64), 48), native._panel()
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_FLAGS", (*compiled._FLAGS, "-DEIGHT_LANES"))
        narrow = compiled._library.__wrapped__()
    assert narrow is not None and panel in (16, 32) and narrow.latents_in_panel() == 16
    for module in (compiled, native):
        monkeypatch.setattr(module, "library", lambda: narrow)
    assert torch.equal(native.candidates(x, W, b, torch.ones(64), 48).sort().values, wide.sort().values)


def test_what_is_no_number_is_a_candidate() -> None:
    """So that training sees it, and stops."""
    needs_compiled()
    x, W, b = problem(20, 48, 256)
    b[200], b[100] = torch.nan, torch.inf
    found = native.candidates(x, W, b, torch.ones(48), 5)
    assert all({100, 200} <= set(row.tolist()) for row in found)
    x[3, 7] = torch.nan
    values, indices = eight_bit.encode(x, W, b.clamp(-1, 1), partial(ops.topk, k=8), k=8)
    assert values[3].isnan().any() and all(len(set(row.tolist())) == 8 for row in indices)


def test_no_candidate_lies_beyond_the_last_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are scores of -infinity, or of no number: compilers may multiply in an order that overflows."""
    needs_compiled()
    x, W, b = problem(20, 48, 33)
    pad = F.pad
    monkeypatch.setattr(native.F, "pad", lambda b, by, value: pad(b, by, value=torch.nan))
    for count in (1, 5, 33):
        found = native.candidates(x * 1e36, W, b, torch.ones(48), count)
        assert found.max() < 33 and all(len(set(row.tolist())) == count for row in found)


def test_latents_that_can_never_fire_are_candidates_last() -> None:
    needs_compiled()
    x, W, _ = problem(20, 48, 64)
    b = torch.full((64,), -torch.inf)
    b[[5, 40]] = 0.0
    found = native.candidates(x, W, b, torch.ones(48), 4)
    assert all({5, 40} <= set(row.tolist()) and len(set(row.tolist())) == 4 for row in found)
