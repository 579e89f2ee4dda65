"""Crosscoders of two models: trained on the same tokens, measured in both, and diffed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from replaced import fvu_of, kl_of, raises_one_line
from safetensors.torch import load_file
from tiny_models import tiny_model, tiny_tokens
from tiny_trainer import Make, maker
from torch import Tensor
from whole_runs import save_after, weights_only

from sae import Sae, SaeConfig, evaluate, graft
from sae.commands.cache import cache_activations
from sae.config import CacheConfig
from sae.data import ActivationCache
from sae.dictionary.spec import Spec
from sae.dictionary.wiring import CROSSCODER, pairs_of
from sae.evaluation.differences import Difference, differences_of, dims_of
from sae.lm import ModelPair, block_names, fits, harvest, locate, resolve_hookpoints, vocab_size, widths

pytestmark = pytest.mark.usefixtures("no_picture")

PLACES = ["a:layers.0", "a:layers.2", "b:layers.0", "b:layers.2"]


def pair(**options: Any) -> ModelPair:
    return ModelPair(tiny_model("gpt_neox", **options), tiny_model("gpt_neox", seed=1, **options))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    made = maker(tmp_path, SaeConfig(num_latents=96, k=6, crosscode=True), layers=[0, 2])
    return lambda data=None, model="pair", **changes: made(data, pair() if model == "pair" else model, **changes)


def crosscoder(parts: dict[str, int], num_latents: int = 96, **shape: Any) -> Sae:
    """In general position: scales, decoder and biases differ."""
    cfg = SaeConfig(num_latents=num_latents, k=6, crosscode=True, **shape)
    d = sum(parts.values())
    spec = Spec(cfg, d, d, num_latents, writes=tuple(parts), widths=tuple(parts.values()))
    sae = Sae(d, cfg, spec=spec, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        assert sae.scale is not None
        sae.scale.copy_(torch.linspace(0.5, 2, d))
    return sae


# Reading


def test_the_same_tokens_go_through_both_models_whose_places_have_names_that_cannot_collide() -> None:
    both, tokens = pair(), tiny_tokens(5, 7)
    found = harvest(both, tokens, [PLACES[3], PLACES[0], PLACES[2]])
    assert list(found) == [PLACES[3], PLACES[0], PLACES[2]]
    for name, acts in found.items():
        one = both.a if name.startswith("a:") else both.b
        assert acts.equal(harvest(one, tokens, [name[2:]])[name[2:]])
    assert not found["a:layers.0"].equal(found["b:layers.0"])
    assert locate(both, "b:layers.2").module is locate(both.b, "layers.2").module
    assert block_names(both) == [side + name for side in ("a:", "b:") for name in block_names(both.a)]


def test_a_choice_of_places_is_of_both_models_unless_it_names_one() -> None:
    both = ModelPair(tiny_model("gpt_neox"), tiny_model("gemma3"))
    assert resolve_hookpoints(both, layers=[1]) == ["a:layers.1", "b:layers.1"]
    assert resolve_hookpoints(both, hookpoints=["a:layers.0", "b:layers.[12]"]) == [
        "a:layers.0", "b:layers.1", "b:layers.2",
    ]  # fmt: skip
    assert widths(both, ["b:layers.1", "a:layers.1"]) == {"b:layers.1": 40, "a:layers.1": 32}
    assert fits("b:layers.1.mlp", "layers.*.mlp") and fits("b:layers.1", "b:layers.1")
    assert not fits("a:layers.1", "b:layers.1") and not fits("layers.1", "a:layers.1")
    raises_one_line("place in both models, and a:layers.0", lambda: resolve_hookpoints(both, hookpoints=["a:layers.0"]))
    raises_one_line("must begin with a: or b:, got layers.0", lambda: harvest(both, tiny_tokens(), ["layers.0"]))
    raises_one_line("one model is given; add --model_b", lambda: harvest(both.a, tiny_tokens(), ["a:layers.0"]))
    raises_one_line("model_b: .*'attention' matches nothing", lambda: resolve_hookpoints(
        ModelPair(tiny_model("gpt_neox"), tiny_model("gpt2")), hookpoints=["a:layers.0.attention", "b:attention"]
    ))  # fmt: skip
    small = tiny_model("gpt2")
    small.resize_token_embeddings(300)
    assert vocab_size(ModelPair(both.a, small)) == vocab_size(ModelPair(small, both.a)) == 300


# Training


def test_one_dictionary_is_trained_for_both_models_and_names_their_places(make: Make) -> None:
    trainer = make()
    first = trainer.source.peek()
    assert list(first) == PLACES
    read = pairs_of({CROSSCODER: trainer.plans[CROSSCODER].wiring}, first)[CROSSCODER][0]
    assert read.equal(torch.cat([first[name] for name in PLACES], -1))
    (loaded,) = Sae.load_many(trainer.fit()).values()
    assert list(loaded.spec.parts) == PLACES and loaded.spec.widths == (32, 32, 32, 32)
    assert set(trainer.fingerprints) == {"model", "model_b", "held_out"}
    (measured,) = trainer.held_out_quality().values()
    assert measured.fvu_at is not None and list(measured.fvu_at) == PLACES and max(measured.fvu_at.values()) < 1


@pytest.mark.parametrize(
    "changes", [{"selection": "batchtopk"}, {"prefixes": [16, 40]}, {"micro": 3}, {"lr": [1e-3, 1e-2]}], ids=str
)
def test_models_of_other_widths_and_all_that_crosscoders_can_do(make: Make, changes: dict[str, Any]) -> None:
    other = {"micro_acc_steps": changes.pop("micro")} if "micro" in changes else {}
    other |= {"lr": changes.pop("lr")} if "lr" in changes else {}
    shape = SaeConfig(num_latents=96, k=6, crosscode=True, **changes)
    models = ModelPair(tiny_model("gpt_neox"), tiny_model("gemma3"))
    trainer = make(model=models, sae=shape, eval_every=10, **other)
    for sae in trainer.saes.values():
        assert list(sae.spec.widths) == [32, 32, 40, 40]
    trainer.fit()


def test_two_models_resume_to_the_bit_and_a_cache_trains_as_they_do(make: Make, tmp_path: Path) -> None:
    whole = make(run_name="whole", save_every=4).fit()
    save_after(make(run_name="stopped", save_every=4), 7)
    assert weights_only(whole) == weights_only(make(run_name="stopped", save_every=4, resume=True).fit())

    options: dict[str, Any] = {"dtype": "float32", "shuffle": False, "activations": str(tmp_path / "cache")}
    folder = cache_activations(CacheConfig(batch_size=4, **options), tiny_tokens(84, 8, seed=1), pair())
    cache = ActivationCache(str(folder))
    from_cache = make(cache, None, run_name="cached").fit()  # its layers 0 and 2, of both
    assert weights_only(whole) == weights_only(from_cache)
    of_one = make(cache, None, run_name="named", layers=[], hookpoints=["b:layers.0", "a:layers.*"])
    assert list(of_one.saes[CROSSCODER].spec.parts) == ["a:layers.0", "a:layers.1", "a:layers.2", "b:layers.0"]
    raises_one_line(
        "crosscode must be on for two models", lambda: make(cache, None, sae=SaeConfig(num_latents=96), run_name="no")
    )
    raises_one_line("crosscode must be on for two models", lambda: make(sae=SaeConfig(num_latents=96), run_name="no"))


def test_the_second_model_is_recognised_when_a_run_goes_on(make: Make) -> None:
    make(run_name="run").fit()
    with pytest.raises(ValueError, match="the model_b of that name now holds something else"):
        make(model=ModelPair(tiny_model("gpt_neox"), tiny_model("gpt_neox", seed=2)), run_name="run", resume=True).fit()


def test_every_gradient_is_that_of_the_dense_crosscoder_in_float64() -> None:
    sae = crosscoder({name: 32 for name in PLACES}).double()
    found = harvest(pair(), tiny_tokens(5, 7), PLACES)
    x = torch.cat([found[name].flatten(0, 1) for name in PLACES], -1).double()
    assert sae.scale is not None
    error = (sae.scaled(sae(x).recon) - sae.scaled(x)).square().sum()
    got = torch.autograd.grad(error, list(sae.parameters()))

    twin = {name: tensor.detach().clone().requires_grad_() for name, tensor in sae.named_parameters()}
    read = x * sae.scale - twin["b_dec"]
    pre = torch.relu(read @ twin["encoder.weight"].T + twin["encoder.bias"])
    least = pre.topk(6, dim=1).values[:, -1:]
    dense = torch.where(pre >= least, pre, 0) @ twin["W_dec"] + twin["b_dec"]
    expected = torch.autograd.grad((dense - x * sae.scale).square().sum(), list(twin.values()))
    for (name, _), one, other in zip(sae.named_parameters(), got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=name)


def test_of_a_model_and_its_copy_all_latents_are_shared_if_the_decoders_start_equal(make: Make) -> None:
    twins = ModelPair(tiny_model("gpt_neox", causal_lm=True), tiny_model("gpt_neox", causal_lm=True))
    trainer = make(model=twins)
    trainer.initialise()
    sae = trainer.saes[CROSSCODER]
    with torch.no_grad():
        sae.W_dec[:, 64:] = sae.W_dec[:, :64]
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        sae.encoder.weight.copy_(sae.W_dec)
    while trainer.train_step():
        pass
    found = evaluate(twins, tiny_tokens(16, 8, seed=2), {CROSSCODER: sae}).differences[""][CROSSCODER]
    shared = found.kinds["shared"]
    assert shared.sum() == (found.fired > 0).sum() > 0
    half = torch.full_like(found.cosine[shared], 0.5)
    torch.testing.assert_close(found.relative_norm[shared], half, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.cosine[shared], 2 * half, rtol=0, atol=1e-3)
    for ratios in (found.nu_error, found.nu_reconstruction):
        torch.testing.assert_close(ratios[:, shared], torch.ones(2, int(shared.sum())).double(), rtol=1e-3, atol=1e-3)
    assert found.to_json()["counts"] == {"a_only": 0, "shared": int(shared.sum()), "b_only": 0, "between": 0}


# Measuring


def dense_code(sae: Sae, x: Tensor) -> Tensor:
    acts, indices = sae.encode(x)
    return torch.zeros(len(x), sae.num_latents, dtype=acts.dtype).scatter_add_(1, indices, acts)


def test_latent_scales_are_those_of_plain_least_squares() -> None:
    both, tokens = pair(causal_lm=True), tiny_tokens(12, 7, seed=3)
    sae = crosscoder({name: 32 for name in PLACES})
    found = evaluate(both, tokens, {CROSSCODER: sae}, batch_size=5).differences[""][CROSSCODER]
    sae = sae.double()
    acts = harvest(both, tokens, PLACES)
    x = torch.cat([acts[name].flatten(0, 1) for name in PLACES], -1).double()
    with torch.no_grad():
        f, made = dense_code(sae, x), sae.scaled(sae(x).recon)
    dims, rows, left = dims_of(sae), sae.W_dec.detach(), sae.scaled(x) - made
    assert dims == (slice(0, 64), slice(64, 128))

    def beta(latent: int, direction: slice, y: Tensor) -> float:
        design = (f[:, latent : latent + 1] * rows[latent, direction]).reshape(-1, 1)
        return float(torch.linalg.lstsq(design, y.reshape(-1, 1)).solution)

    assert found.fired.tolist() == (f > 0).sum(0).tolist()
    for latent in (f > 0).any(0).nonzero().flatten().tolist()[:20]:
        for i, direction in enumerate(dims):
            for j, there in enumerate(dims):
                own = f[:, latent : latent + 1] * rows[latent, there]
                by_latents = (made - sae.b_dec.detach())[:, there]
                expected = beta(latent, direction, left[:, there] + own), beta(latent, direction, by_latents)
                got = found.beta_error[i, j, latent].item(), found.beta_reconstruction[i, j, latent].item()
                assert got == pytest.approx(expected, rel=1e-3, abs=1e-3)
    never = (f == 0).all(0)
    assert never.any() and found.beta_error[..., never].isnan().all() and found.nu_error[:, never].isnan().all()
    a, b = rows[:, :64], rows[:, 64:]
    torch.testing.assert_close(found.relative_norm, b.norm(dim=1) / (a.norm(dim=1) + b.norm(dim=1)), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.cosine, torch.cosine_similarity(a, b, dim=1), rtol=1e-4, atol=1e-5)


def test_a_shrunk_latent_and_a_decoupled_one_are_told_from_one_that_is_truly_of_one_model() -> None:
    """Four concepts, each a direction of its own. All decoder rows say "B alone"."""
    sae = Sae(8, SaeConfig(num_latents=8, k=3, crosscode=True), spec=Spec(
        SaeConfig(num_latents=8, k=3, crosscode=True), 8, 8, 8, writes=("a:x", "b:x"), widths=(4, 4)
    ))  # fmt: skip
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.W_dec[:3, 4:7] = torch.eye(3)  # 0 is true, 1 has shrunk in A, 2 is reconstructed by 3 in A
        sae.W_dec[3, 2] = 1
    f = torch.rand(400, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    acts = torch.cat([f, f[:, 2:]], 1).unsqueeze(0)
    indices = torch.arange(4).expand(1, 400, 4)
    x = torch.zeros(1, 400, 8)
    x[0, :, 4:7] = f  # B has all three
    x[0, :, 1], x[0, :, 2] = 0.8 * f[:, 1], f[:, 2]
    recon = sae.decode(acts, indices).detach()
    sums = differences_of(sae, acts, indices, x, recon, torch.ones(1, 400, dtype=torch.bool))
    found = Difference.of(sae, sums, torch.tensor([400] * 4 + [0] * 4))
    torch.testing.assert_close(found.nu_error[1, :3], torch.tensor([0, 0.8, 0]).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.nu_reconstruction[1, :3], torch.tensor([0, 0, 1]).double(), rtol=0, atol=1e-6)
    assert found.kinds["b_only"].nonzero().flatten().tolist() == [0, 1, 2]
    assert found.kinds["a_only"].nonzero().flatten().tolist() == [3]
    assert found.confirmed("b_only").nonzero().flatten().tolist() == [0]
    said = found.to_json()
    assert said["counts"] == {"a_only": 1, "shared": 0, "b_only": 3, "between": 0}
    assert [each["confirmed"] for each in said["b_only"]] == [True, False, False]


def test_the_sums_of_parts_add_up_and_models_of_other_widths_are_not_scaled() -> None:
    both = ModelPair(tiny_model("gpt_neox"), tiny_model("gemma3"))
    sae = crosscoder({"a:layers.1": 32, "b:layers.1": 40})
    found = evaluate(both, tiny_tokens(8, 7), {CROSSCODER: sae}).differences[""][CROSSCODER]
    assert found.cosine.isnan().all() and found.beta_error.isnan().all() and found.relative_norm.isfinite().all()
    assert math.isnan(found.medians("shared")["nu_error"]) and not found.confirmed("b_only").any()

    sae = crosscoder({name: 32 for name in PLACES})
    one, other = (
        evaluate(pair(), tiny_tokens(9, 7), {CROSSCODER: sae}, batch_size=size).differences[""][CROSSCODER]
        for size in (2, 9)
    )
    torch.testing.assert_close(one.beta_error, other.beta_error, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_each_model_predicts_with_its_own_places_replaced() -> None:
    both, tokens = pair(causal_lm=True), tiny_tokens(8, 7)
    sae = crosscoder({name: 32 for name in PLACES})
    found = evaluate(both, tokens, {CROSSCODER: sae}, max_tokens=56)
    assert [hookpoint for _, hookpoint in found.qualities] == [*PLACES, "a:all", "b:all"]
    with torch.no_grad():
        acts = harvest(both, tokens, PLACES)
        recon = sae(torch.cat([acts[name] for name in PLACES], -1)).recon
        new = {name: recon[..., part] for name, part in sae.spec.parts.items()}

        for side, one in (("a:", both.a), ("b:", both.b)):
            for name in ("layers.0", "layers.2"):
                metrics, replaced = found[side + name].metrics, new[side + name]
                assert metrics["fvu"] == pytest.approx(fvu_of(replaced, acts[side + name]), rel=1e-4)
                assert metrics["kl_div_with_sae"] == pytest.approx(kl_of(one, tokens, {name: replaced}), rel=1e-4)
            at_once = kl_of(one, tokens, {name: new[side + name] for name in ("layers.0", "layers.2")})
            assert found[f"{side}all"].metrics["kl_div_with_sae"] == pytest.approx(at_once, rel=1e-4)


def test_a_pair_is_not_grafted_and_a_saved_crosscoder_says_its_places(tmp_path: Path) -> None:
    def grafted() -> None:
        with graft(pair(), {"a:layers.0": torch.zeros_like}):
            pass

    raises_one_line(r"must be one, got a pair; graft its \.a or its \.b", grafted)
    crosscoder({name: 32 for name in PLACES}).save_to_disk(tmp_path)
    assert list(Sae.load_from_disk(tmp_path).spec.parts) == PLACES
    assert "scale" in load_file(tmp_path / "sae.safetensors")
