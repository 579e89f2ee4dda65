"""Crosscoders: one dictionary for several hookpoints, trained, measured, saved and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from replaced import fvu_of, kl_of, raises_one_line
from safetensors.torch import load_file
from tiny_models import tiny_model, tiny_tokens
from tiny_trainer import Make, maker
from torch import Tensor, nn
from whole_runs import save_after, weights_only, without_speed

from sae import Sae, SaeConfig, evaluate, graft
from sae.commands.cache import cache_activations
from sae.config import CacheConfig
from sae.data import ActivationCache
from sae.dictionary.losses import VarianceSums
from sae.dictionary.spec import Spec
from sae.dictionary.wiring import CROSSCODER
from sae.evaluation.relative_norms import relative_norms
from sae.lm import harvest
from sae.runs.log import read_records
from sae.training.initial import balance

pytestmark = pytest.mark.usefixtures("no_picture")

LAYERS = ["layers.0", "layers.1", "layers.2"]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path, SaeConfig(num_latents=96, k=6, crosscode=True))


def crosscoder(widths: tuple[int, ...] = (32, 32, 32)) -> Sae:
    """In general position: scales, decoder and biases differ."""
    cfg = SaeConfig(num_latents=96, k=6, crosscode=True)
    spec = Spec(cfg, sum(widths), sum(widths), 96, writes=tuple(LAYERS[: len(widths)]), widths=widths)
    sae = Sae(sum(widths), cfg, spec=spec, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        assert sae.scale is not None
        sae.scale.copy_(torch.cat([torch.full((width,), 0.5 + index) for index, width in enumerate(widths)]))
    return sae


def of_all_layers(batch: int = 6) -> dict[str, Tensor]:
    return harvest(tiny_model("gpt_neox"), tiny_tokens(batch, 7), LAYERS)


# Training


def test_one_dictionary_is_trained_for_all_hookpoints_and_says_how_good_it_is_at_each(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make()
    assert list(trainer.saes) == [CROSSCODER] and trainer.saes[CROSSCODER].d_in == 96
    folder = trainer.fit()
    lines = capsys.readouterr().out.splitlines()
    assert [sum(name in line for line in lines) for name in (CROSSCODER, *LAYERS)] == [1, 1, 1, 1]
    (loaded,) = Sae.load_many(folder).values()
    assert list(loaded.spec.parts) == LAYERS and loaded.cfg.crosscode
    found = of_all_layers()
    assert loaded(torch.cat([found[name] for name in LAYERS], -1)).fvu < 0.9
    (measured,) = trainer.held_out_quality().values()
    assert measured.fvu_at is not None and list(measured.fvu_at) == LAYERS
    written = json.loads((trainer.folder.path / "evaluation.json").read_text())[CROSSCODER]
    assert [written[f"fvu/{name}"] for name in LAYERS] == pytest.approx(list(measured.fvu_at.values()))


@pytest.mark.parametrize(
    "changes",
    [{}, {"selection": "batchtopk"}, {"selection": "groupmax"}, {"prefixes": [16, 40]}, {"budgets": [2]}, {"k": 32}],
    ids=str,
)
def test_a_crosscoder_of_one_hookpoint_is_an_autoencoder_to_the_bit(make: Make, changes: dict[str, Any]) -> None:
    shape = {"num_latents": 96, "k": 6} | changes
    one = make(sae=SaeConfig(crosscode=True, **shape), layers=[1], run_name="one", micro_acc_steps=2)
    other = make(sae=SaeConfig(**shape), layers=[1], run_name="other", micro_acc_steps=2)
    tensors = load_file(next(one.fit().rglob("sae.safetensors")))
    assert tensors.pop("scale").eq(1).all()
    for name, tensor in load_file(next(other.fit().rglob("sae.safetensors"))).items():
        assert tensors.pop(name).equal(tensor), name
    assert not tensors
    records = [read_records(trainer.folder.path / "metrics.jsonl") for trainer in (one, other)]
    for record, twin in zip(*records, strict=True):
        assert [record[f"{CROSSCODER}/{name}"] for name in ("fvu", "l0", "auxk")] == [
            twin[f"layers.1/{name}"] for name in ("fvu", "l0", "auxk")
        ]
        assert record[f"{CROSSCODER}/fvu/layers.1"] == pytest.approx(record[f"{CROSSCODER}/fvu"], rel=1e-6)


def test_every_hookpoint_counts_alike_whatever_its_size(make: Make) -> None:
    scales = balance(torch.tensor([0.1, 20.0, 3.0]))
    torch.testing.assert_close(scales * torch.tensor([0.1, 20.0, 3.0]), torch.full((3,), 6.0 ** (1 / 3)))
    assert scales.prod().item() == pytest.approx(1) and balance(torch.tensor([7.0])).item() == 1

    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.layers[2].mlp.dense_4h_to_h.weight.mul_(200)
    trainer = make(model=model)
    first = trainer.source.peek()
    spreads = [VarianceSums.of(first[name]).total_variance() / len(first[name]) for name in LAYERS]
    assert spreads[2] > 100 * spreads[0]
    trainer.initialise()
    sae = trainer.saes[CROSSCODER]
    scaled = sae.scaled(torch.cat([first[name] for name in LAYERS], -1))
    balanced = [VarianceSums.of(scaled[:, part]).total_variance() for part in sae.spec.parts.values()]
    torch.testing.assert_close(torch.stack(balanced), balanced[0].expand(3), rtol=1e-4, atol=0.0)
    while trainer.train_step():
        pass
    metrics = trainer.metrics(tokens_per_second=1.0)
    fvus = [metrics[f"{CROSSCODER}/fvu/{name}"] for name in LAYERS]
    assert max(fvus) < 1.0 and metrics[f"{CROSSCODER}/fvu"] == pytest.approx(sum(fvus) / 3, rel=0.05)


def test_the_fvu_at_a_hookpoint_is_that_of_its_dimensions() -> None:
    sae, found = crosscoder(), of_all_layers()
    x = torch.cat([found[name].flatten(0, 1) for name in LAYERS], -1)
    from sae.evaluation.reconstruction import evaluate_reconstruction

    measured = evaluate_reconstruction({"it": sae}, [{"it": part} for part in x.split(13)])["it"]
    recon = sae(x).recon
    assert measured.fvu_at is not None
    for name, part in sae.spec.parts.items():
        y = x[:, part]
        expected = (recon[:, part] - y).square().sum() / (y - y.mean(0)).square().sum()
        assert measured.fvu_at[name] == pytest.approx(expected.item(), rel=1e-5)
    whole = sae.scaled(recon - x).square().sum() / sae.scaled(x - x.mean(0)).square().sum()
    assert measured.fvu == pytest.approx(whole.item(), rel=1e-5)


def test_hookpoints_of_several_widths_and_the_number_of_latents_of_the_widest(make: Make) -> None:
    hookpoints = ["layers.0", "layers.1.mlp.dense_h_to_4h"]
    trainer = make(sae=SaeConfig(expansion_factor=2, k=6, crosscode=True), hookpoints=hookpoints)
    (sae,) = trainer.saes.values()
    assert sae.d_in == 32 + 48 and sae.num_latents == 2 * 48 and list(sae.spec.widths) == [32, 48]
    trainer.fit()


def test_crosscoders_resume_to_the_bit_and_a_cache_trains_as_the_model_does(make: Make, tmp_path: Path) -> None:
    whole = make(run_name="whole", save_every=4, log_every=3).fit()
    save_after(make(run_name="stopped", save_every=4, log_every=3), 7)
    resumed = make(run_name="stopped", save_every=4, log_every=3, resume=True).fit()
    assert weights_only(whole) == weights_only(resumed)
    last, again = (without_speed(read_records(folder.parent / "metrics.jsonl")[-1]) for folder in (whole, resumed))
    assert all(last[key] == again[key] for key in last if key.startswith(CROSSCODER))

    options = {"layers": [0, 1, 2], "dtype": "float32", "shuffle": False, "activations": str(tmp_path / "cache")}
    cached = cache_activations(CacheConfig(batch_size=4, **options), tiny_tokens(84, 8, seed=1), tiny_model("gpt_neox"))
    assert weights_only(whole) == weights_only(make(ActivationCache(str(cached)), None, run_name="cached").fit())


def test_a_sweep_trains_crosscoders_beside_each_other_and_beside_autoencoders(make: Make) -> None:
    shapes = [SaeConfig(num_latents=96, k=k, crosscode=crosscode) for crosscode in (True, False) for k in (4, 6)]
    trainer = make(sae=shapes, layers=[0, 2], run_name="sweep")
    crosscoders = [name for name in trainer.saes if name.endswith(CROSSCODER)]
    assert len(crosscoders) == 2 and len(trainer.saes) == 2 + 4
    folder = trainer.fit()
    alone = make(sae=shapes[1], layers=[0, 2], run_name="alone").fit()
    swept = load_file(folder / next(name for name in crosscoders if "k6" in name) / "sae.safetensors")
    for name, tensor in load_file(alone / CROSSCODER / "sae.safetensors").items():
        assert swept[name].equal(tensor), name


def test_a_crosscoder_is_trained_further_with_its_own_hookpoints_and_scales(make: Make) -> None:
    folder = str(make(run_name="first", layers=[0, 2]).fit())
    further = make(sae=SaeConfig(crosscode=True), run_name="further", layers=[0, 2], finetune=folder)
    before, after = Sae.load_many(folder)[CROSSCODER], further.saes[CROSSCODER]
    assert after.W_dec.equal(before.W_dec) and after.spec.parts == before.spec.parts
    further.initialise()
    assert before.scale is not None and after.scale is not None and after.scale.equal(before.scale)
    with pytest.raises(ValueError, match=r"is of layers\.0, layers\.2, got layers\.1, layers\.2; give its own"):
        make(sae=SaeConfig(crosscode=True), run_name="other", layers=[1, 2], finetune=folder)


# Evaluation


def test_sae_eval_measures_each_hookpoint_alone_and_all_at_once() -> None:
    model, tokens, sae = tiny_model("gpt_neox", causal_lm=True), tiny_tokens(8, 7), crosscoder()
    found = evaluate(model, tokens, {CROSSCODER: sae}, max_tokens=56)
    assert [hookpoint for _, hookpoint in found.qualities] == [*LAYERS, "all"]
    with torch.no_grad():
        activations = harvest(model, tokens, LAYERS)
        recon = sae(torch.cat([activations[name] for name in LAYERS], -1)).recon
        new = {name: recon[..., part] for name, part in sae.spec.parts.items()}

        for name in LAYERS:
            metrics = found[name].metrics
            assert metrics["fvu"] == pytest.approx(fvu_of(new[name], activations[name]), rel=1e-4)
            assert metrics["kl_div_with_sae"] == pytest.approx(kl_of(model, tokens, {name: new[name]}), rel=1e-4)
        assert found["all"].metrics["kl_div_with_sae"] == pytest.approx(kl_of(model, tokens, new), rel=1e-4)


def test_an_evaluation_of_a_crosscoder_of_one_hookpoint_is_an_autoencoder_s() -> None:
    model, tokens = tiny_model("gpt_neox", causal_lm=True), tiny_tokens(8, 7)
    one = crosscoder((32,))
    assert one.scale is not None
    one.scale.fill_(1)
    other = Sae.of_tensors(SaeConfig(num_latents=96, k=6), {k: t for k, t in one.state_dict().items() if k != "scale"})
    found = [evaluate(model, tokens, {name: each})["layers.0"] for name, each in (("it", one), ("layers.0", other))]
    assert found[0] == found[1]


def test_relative_norms_are_shares_and_say_where_a_latent_is() -> None:
    sae = crosscoder()
    with torch.no_grad():
        sae.W_dec[0, 32:] = 0
        sae.W_dec[1, :64] = 0
    norms = relative_norms(sae)
    torch.testing.assert_close(norms.sum(0), torch.ones(96))
    assert norms[:, 0].tolist() == [1.0, 0.0, 0.0] and norms[:, 1].tolist() == [0.0, 0.0, 1.0]
    found = evaluate(tiny_model("gpt_neox", causal_lm=True), tiny_tokens(8, 7), {CROSSCODER: sae}).relative_norms[""]
    acts = of_all_layers(8)
    code = sae.encode(torch.cat([harvest(tiny_model("gpt_neox"), tiny_tokens(8, 7), LAYERS)[n] for n in acts], -1))
    fired = code.top_indices[code.top_acts > 0].unique()
    for name, shares in zip(LAYERS, norms, strict=True):
        assert sum(found[name]) == len(fired)
        assert found[name] == [int(((shares[fired] * 10).long().clamp_max(9) == b).sum()) for b in range(10)]


# What does not go together, in one line


def test_what_a_crosscoder_cannot_be_is_one_line(make: Make, tmp_path: Path) -> None:
    raises_one_line("leave out one of them", lambda: SaeConfig(crosscode=True, transcode=True))
    raises_one_line("loss_fn must be fvu with crosscode", lambda: make(loss_fn="kl"))
    sae = crosscoder()
    raises_one_line("no crosscoders", lambda: sae.save_to_disk(tmp_path / "there", format="saelens"))
    model = tiny_model("gpt_neox", causal_lm=True)

    def grafted() -> None:
        with graft(model, {"layers.0": sae}):
            pass

    raises_one_line("must read one hookpoint, got a crosscoder", grafted)
    both = {CROSSCODER: sae, "layers.1": Sae(32, SaeConfig(num_latents=96, k=6))}
    raises_one_line("one dictionary that writes layers.1", lambda: evaluate(model, tiny_tokens(8, 7), both))
    without = Sae(96, SaeConfig(num_latents=96, k=6, crosscode=True))
    raises_one_line("must know its hookpoints", lambda: without.save_to_disk(tmp_path / "there"))


def test_a_hookpoint_that_never_changes_is_named(make: Make) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    model = tiny_model("gpt_neox")
    model.layers[1].mlp.act = Constant()
    trainer = make(model=model, hookpoints=["layers.0", "layers.1.mlp"])
    raises_one_line("activations at layers.1.mlp must differ", trainer.initialise)


@pytest.mark.parametrize(
    "hookpoints",
    [None, {}, {"layers.0": 32}, {"layers.0": 32, "layers.1": 32, "layers.2": True}, {"../up": 96}, [96]],
    ids=str,
)
def test_a_stranger_s_crosscoder_must_say_hookpoints_that_fit(hookpoints: Any, tmp_path: Path) -> None:
    crosscoder().save_to_disk(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"hookpoints": hookpoints}))
    raises_one_line("hookpoints must map", lambda: Sae.load_from_disk(tmp_path))
