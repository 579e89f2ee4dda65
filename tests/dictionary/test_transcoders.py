"""Transcoders: a dictionary that reads a module's input and writes its output, trained, measured and grafted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from replaced import fvu_of, kl_of
from tiny_models import tiny_model, tiny_tokens
from tiny_trainer import Make, maker
from torch import Tensor
from whole_runs import save_after, weights_only

from sae import Sae, SaeConfig, evaluate, graft
from sae.commands.cache import cache_activations
from sae.config import CacheConfig
from sae.data import ActivationCache
from sae.dictionary.spec import Saved
from sae.lm import harvest

pytestmark = pytest.mark.usefixtures("no_picture")

MLP = "layers.1.mlp"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path, SaeConfig(num_latents=96, k=6, transcode=True), hookpoints=["layers.*.mlp"])


def pair(hookpoint: str = MLP, batch: int = 6) -> tuple[Tensor, Tensor]:
    found = harvest(tiny_model("gpt_neox"), tiny_tokens(batch, 7), [f"{hookpoint}.input", hookpoint])
    return found[f"{hookpoint}.input"], found[hookpoint]


def test_a_transcoder_is_trained_for_each_module_and_named_after_it(make: Make) -> None:
    trainer = make()
    assert list(trainer.saes) == ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]
    folder = trainer.fit()
    loaded = Sae.load_many(folder)
    assert list(loaded) == list(trainer.saes) and all(sae.reads_input for sae in loaded.values())
    x, y = pair()
    assert loaded[MLP](x, y).fvu < 0.9


def test_a_transcoder_s_widths_are_those_of_what_it_reads_and_writes(make: Make) -> None:
    trainer = make(hookpoints=["layers.1.mlp.dense_h_to_4h"])
    (sae,) = trainer.saes.values()
    assert (sae.d_in, sae.d_out) == (32, 48) and sae.W_dec.shape == (96, 48)
    trainer.fit()


def test_the_skip_connection_learns_what_is_linear(make: Make) -> None:
    hookpoints = ["layers.1.attention.dense"]  # a linear map: W_skip can do all of it
    with_skip = make(sae=SaeConfig(num_latents=96, k=6, transcode=True, skip_connection=True), hookpoints=hookpoints)
    with_skip.fit()
    without = make(hookpoints=hookpoints, run_name="without")
    without.fit()
    (one,), (other,) = with_skip.held_out_quality().values(), without.held_out_quality().values()
    assert one.fvu < 0.5 * other.fvu


def test_transcoders_resume_to_the_bit_and_a_cache_trains_as_the_model_does(make: Make, tmp_path: Path) -> None:
    whole = make(run_name="whole", save_every=4).fit()
    save_after(make(run_name="stopped", save_every=4), 7)
    resumed = make(run_name="stopped", save_every=4, resume=True).fit()
    assert weights_only(whole) == weights_only(resumed)

    hookpoints = ["layers.*.mlp", "layers.*.mlp.input"]
    options = {"hookpoints": hookpoints, "dtype": "float32", "shuffle": False, "activations": str(tmp_path / "cache")}
    cached = cache_activations(CacheConfig(batch_size=4, **options), tiny_tokens(84, 8, seed=1), tiny_model("gpt_neox"))
    from_cache = make(ActivationCache(str(cached)), None, run_name="cached").fit()
    assert weights_only(whole) == weights_only(from_cache)


def test_a_cache_without_the_inputs_is_one_line(make: Make, tmp_path: Path) -> None:
    options = {"hookpoints": ["layers.1.mlp"], "dtype": "float32", "activations": str(tmp_path / "cache")}
    cached = cache_activations(CacheConfig(batch_size=4, **options), tiny_tokens(84, 8, seed=1), tiny_model("gpt_neox"))
    with pytest.raises(ValueError, match="lack layers.1.mlp.input"):
        make(ActivationCache(str(cached)), None)


def test_a_grafted_transcoder_stands_in_the_place_of_the_module_s_output() -> None:
    model, tokens = tiny_model("gpt_neox", causal_lm=True), tiny_tokens()
    cfg = SaeConfig(num_latents=96, k=6, transcode=True, skip_connection=True)
    sae = Sae(32, cfg)
    torch.nn.init.normal_(sae.W_dec)
    torch.nn.init.normal_(sae.W_skip)
    base = harvest(model, tokens, [f"{MLP}.input"])[f"{MLP}.input"]
    with graft(model, {MLP: sae}), torch.no_grad():
        grafted = model(tokens).logits
    by_hand = sae(base).recon
    with graft(model, {MLP: lambda y: by_hand}), torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, grafted)


class Module:
    """A coder that computes what the module does: a transcoder that is exact."""

    num_latents, reads_input = 1, True

    def __init__(self, module: Any) -> None:
        self.module = module

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.module.forward(x), torch.zeros(1)

    def decode(self, top_acts: Tensor, top_indices: Tensor) -> Tensor:
        return top_acts


def test_a_grafted_identity_transcoder_changes_no_logit() -> None:
    model, tokens = tiny_model("gpt_neox", causal_lm=True), tiny_tokens()
    exact = Module(model.get_submodule("gpt_neox.layers.1.mlp"))
    with torch.no_grad():
        clean = model(tokens).logits
        with graft(model, {MLP: exact}):
            assert model(tokens).logits.equal(clean)


def test_what_sae_eval_says_of_a_transcoder_is_of_the_module_s_output() -> None:
    model, tokens = tiny_model("gpt_neox", causal_lm=True), tiny_tokens(8, 7)
    sae = Sae(32, SaeConfig(num_latents=96, k=6, transcode=True))
    torch.nn.init.normal_(sae.W_dec, std=0.1)
    quality = evaluate(model, tokens, {MLP: sae}, max_tokens=56).qualities["", MLP].metrics
    found = harvest(model, tokens, [f"{MLP}.input", MLP])
    torch.testing.assert_close(quality["fvu"], sae(found[f"{MLP}.input"], found[MLP]).fvu.item(), rtol=1e-4, atol=1e-5)
    with graft(model, {MLP: sae}), torch.no_grad():
        grafted = model(tokens).logits.log_softmax(-1)
    clean = model(tokens).logits.log_softmax(-1)
    kl = (clean.exp() * (clean - grafted)).sum(-1).mean().item()
    assert quality["kl_div_with_sae"] == pytest.approx(kl, rel=1e-4)


def test_a_transcoder_is_trained_further_and_not_as_an_autoencoder_of_its_output(make: Make) -> None:
    folder = str(make(run_name="first").fit())
    further = make(run_name="further", finetune=folder)
    before, after = Sae.load_many(folder), further.saes
    assert all(after[name].W_dec.equal(sae.W_dec) and after[name].reads_input for name, sae in before.items())
    further.fit()
    with pytest.raises(ValueError, match="transcode must be given .*; add --transcode") as caught:
        make(sae=SaeConfig(), run_name="other", finetune=folder)
    assert "\n" not in str(caught.value)


def test_a_module_s_input_cannot_be_transcoded(make: Make) -> None:
    with pytest.raises(ValueError, match="got layers.1.mlp.input; give layers.1.mlp"):
        make(hookpoints=["layers.1.mlp.input"])


# From one hookpoint to another: A->B

AB = "layers.0->layers.2"


def transcoder(skip: bool = True) -> Sae:
    sae = Sae(32, SaeConfig(num_latents=96, k=6, transcode=True, skip_connection=skip))
    torch.nn.init.normal_(sae.W_dec, std=0.3)
    if sae.W_skip is not None:
        torch.nn.init.normal_(sae.W_skip, std=0.1)
    return sae


def test_from_a_module_s_input_to_its_output_is_that_module_s_transcoder_to_the_bit(make: Make) -> None:
    named = make(hookpoints=["layers.1.mlp.input -> layers.1.mlp"], run_name="named")
    assert list(named.saes) == ["layers.1.mlp.input->layers.1.mlp"]
    of_module = make(hookpoints=[MLP], run_name="module").fit()
    assert [*weights_only(named.fit()).values()] == [*weights_only(of_module).values()] != []  # names differ


def test_a_transcoder_between_any_two_hookpoints_is_trained_kept_and_resumed(make: Make, tmp_path: Path) -> None:
    hookpoints = [AB, "layers.*.mlp", "layers.2->layers.1.mlp.dense_h_to_4h"]
    whole = make(hookpoints=hookpoints, run_name="whole", save_every=4)
    mlps = ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]
    assert list(whole.saes) == [*mlps, AB, "layers.2->layers.1.mlp.dense_h_to_4h"]
    assert whole.saes[hookpoints[2]].W_dec.shape == (96, 48)
    folder = whole.fit()
    loaded = Sae.load_many(folder)
    assert set(loaded) == set(whole.saes)
    assert (loaded[AB].spec.reads, loaded[AB].spec.writes) == (("layers.0",), ("layers.2",))
    x, y = harvest(tiny_model("gpt_neox"), tiny_tokens(6, 7), ["layers.0", "layers.2"]).values()
    assert loaded[AB](x, y).fvu < 0.9

    save_after(make(hookpoints=hookpoints, run_name="stopped", save_every=4), 7)
    resumed = make(hookpoints=hookpoints, run_name="stopped", save_every=4, resume=True).fit()
    assert weights_only(folder) == weights_only(resumed)

    cached = ["layers.0", "layers.2", "layers.*.mlp", "layers.*.mlp.input", "layers.1.mlp.dense_h_to_4h"]
    options = {"hookpoints": cached, "dtype": "float32", "shuffle": False, "activations": str(tmp_path / "cache")}
    cache = cache_activations(CacheConfig(batch_size=4, **options), tiny_tokens(84, 8, seed=1), tiny_model("gpt_neox"))
    from_cache = make(ActivationCache(str(cache)), None, run_name="cached", hookpoints=hookpoints).fit()
    assert weights_only(folder) == weights_only(from_cache)


def test_a_grafted_transcoder_from_a_to_b_reads_a_and_stands_at_b() -> None:
    model, tokens, sae = tiny_model("gpt_neox", causal_lm=True), tiny_tokens(), transcoder()
    with torch.no_grad():
        by_hand = sae(harvest(model, tokens, ["layers.0"])["layers.0"]).recon
        with graft(model, {AB: sae}):
            grafted = model(tokens).logits
        with graft(model, {"layers.2": lambda y: by_hand}):
            torch.testing.assert_close(model(tokens).logits, grafted)
        # What it reads is what another graft leaves there, in whatever order they are given.
        other = Sae(32, SaeConfig(num_latents=96, k=6))
        replaced = sae(other(harvest(model, tokens, ["layers.0"])["layers.0"]).recon).recon
        with graft(model, {"layers.2": lambda y: replaced}):
            expected = model(tokens).logits
        for both in ({AB: sae, "layers.0": other}, {"layers.0": other, AB: sae}):
            with graft(model, both):
                torch.testing.assert_close(model(tokens).logits, expected)


def test_sae_eval_of_a_transcoder_from_a_to_b_is_of_b_and_also_where_a_comes_after() -> None:
    model, tokens = tiny_model("gpt_neox", causal_lm=True), tiny_tokens(8, 7)
    saes = {AB: transcoder(), "layers.2->layers.1": transcoder()}
    found = evaluate(model, tokens, saes, max_tokens=56)
    x = harvest(model, tokens, ["layers.0", "layers.1", "layers.2"])
    with torch.no_grad():
        new = {"layers.2": saes[AB](x["layers.0"]).recon, "layers.1": saes["layers.2->layers.1"](x["layers.2"]).recon}

        for name, writes in ((AB, "layers.2"), ("layers.2->layers.1", "layers.1")):
            metrics, replaced = found[name].metrics, {writes: new[writes]}
            assert metrics["fvu"] == pytest.approx(fvu_of(new[writes], x[writes]), rel=1e-4)
            assert metrics["kl_div_with_sae"] == pytest.approx(kl_of(model, tokens, replaced), rel=1e-4)
        assert found["all"].metrics["kl_div_with_sae"] == pytest.approx(kl_of(model, tokens, new), rel=1e-4)
        with (
            pytest.raises(ValueError, match="must read what comes before, got layers.2") as caught,
            graft(model, {"layers.2->layers.1": saes["layers.2->layers.1"]}),
        ):
            model(tokens)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hookpoint", "message"),
    [
        ("layers.*->layers.2", "one place on each side of ->, .* in which layers.\\* stands for 3; name each pair"),
        ("layers.0->layers.0", "two places to transcode between"),
        ("layers.0->layers.1->layers.2", "two places to transcode between"),
        ("->layers.2", "two places to transcode between"),
        ("layers.0->layers.9", "'layers.9' matches nothing"),
    ],
)
def test_two_ends_that_cannot_be_are_one_line(make: Make, hookpoint: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make(hookpoints=[hookpoint])
    assert "\n" not in str(caught.value)


def test_two_ends_are_for_transcoders_and_a_cache_must_have_both(make: Make, tmp_path: Path) -> None:
    for sae in (SaeConfig(num_latents=96, k=6), SaeConfig(num_latents=96, k=6, crosscode=True)):
        with pytest.raises(
            ValueError, match="got layers.0->layers.2, which transcoders read and write; add --transcode"
        ):
            make(sae=sae, hookpoints=[AB])
    options = {"hookpoints": ["layers.2"], "dtype": "float32", "activations": str(tmp_path / "cache")}
    cached = cache_activations(CacheConfig(batch_size=4, **options), tiny_tokens(84, 8, seed=1), tiny_model("gpt_neox"))
    with pytest.raises(ValueError, match="lack layers.0"):
        make(ActivationCache(str(cached)), None, hookpoints=[AB])


@pytest.mark.parametrize(
    "ends", [{"reads": "layers.0"}, {"reads": 3, "writes": "layers.1"}, {"reads": "..", "writes": "a"}]
)
def test_a_stranger_s_ends_must_be_two_hookpoints(ends: dict[str, Any], tmp_path: Path) -> None:
    transcoder().save_to_disk(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | ends))
    with pytest.raises(ValueError, match="reads and writes must be two hookpoints"):
        Sae.load_from_disk(tmp_path)


def test_a_transcoder_that_says_what_it_reads_is_measured_and_grafted_from_there() -> None:
    """As those of Gemma Scope, from one norm's output to another's: not from the input of what they write."""
    model, tokens, sae = tiny_model("gpt_neox", causal_lm=True), tiny_tokens(8, 7), transcoder()
    reads, writes = "layers.1.post_attention_layernorm", "layers.1.mlp.dense_4h_to_h"
    named = Sae.from_saved(Saved(replace(sae.spec, reads=(reads,), writes=(writes,)), sae.saved().tensors))
    x = harvest(model, tokens, [reads, writes])
    found = evaluate(model, tokens, {writes: named})[writes].metrics
    assert found["fvu"] == pytest.approx(named(x[reads], x[writes]).fvu.item(), rel=1e-4)
    with torch.no_grad(), graft(model, {writes: named}):
        grafted = model(tokens).logits
    with torch.no_grad(), graft(model, {writes: lambda y: named(x[reads]).recon}):
        torch.testing.assert_close(model(tokens).logits, grafted)
    unknown = Saved(replace(sae.spec, reads=("blocks.1.ln2.hook_normalized",)), sae.saved().tensors)
    assert named.reads == reads and Sae.from_saved(unknown).reads == "" == sae.reads
