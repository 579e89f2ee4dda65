"""A finished batchtopk dictionary keeps k latents of a held-out token in the mean, and training does not notice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from tiny_models import tiny_tokens
from tiny_trainer import Make, maker
from whole_runs import stop_after

from sae import Sae, SaeConfig, SaeTrainer
from sae.dictionary.wiring import Pair
from sae.evaluation.reconstruction import evaluate_reconstruction
from sae.training.learner import SaeLearner
from sae.training.recipe import Recipe, nearest_divisor

pytestmark = pytest.mark.usefixtures("no_picture")

K = 6


def shape(**changes: Any) -> SaeConfig:
    return SaeConfig(**{"num_latents": 96, "k": K, "selection": "batchtopk"} | changes)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path, shape(), layers=[0, 2])


def held_out_l0(trainer: SaeTrainer, folder: Path) -> dict[str, float]:
    """Mean number of latents per held-out token, by hookpoint, of what is on disk, by the encoder's own product."""
    batches = list(trainer.store.held_out_batches())
    found = {}
    for name, sae in Sae.load_many(folder).items():
        x = torch.cat([trainer._by_sae(batch.activations)[name][0] for batch in batches]).float()
        pre_acts = (x if sae.reads_input else x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias
        assert sae.threshold is not None
        found[name] = (pre_acts > sae.threshold).sum(1).float().mean().item()
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every step saved": {"save_every": 1},
    "matryoshka": {"sae": shape(prefixes=[24, 96])},
    "transcoder": {"sae": shape(transcode=True), "layers": [], "hookpoints": ["layers.*.mlp"]},
    "micro-batches": {"micro_acc_steps": 2},
    "fewer at inference": {"sae": shape(inference_l0=3.5)},
    "fewer at inference, every step saved": {"sae": shape(inference_l0=2), "save_every": 1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_k_latents_of_a_held_out_token_stay_in_the_mean(name: str, make: Make) -> None:
    trainer = make(**OPTIONS[name])
    folder = trainer.fit()
    wanted = OPTIONS[name].get("sae", shape()).inference_l0 or K
    for l0 in held_out_l0(trainer, folder).values():
        assert l0 == pytest.approx(wanted, rel=0.02)  # of 192 activations; bins are 1 % wide


def test_massive_tokens_take_no_latents_of_the_others() -> None:
    """One token in sixteen is an attention sink, and fires as many latents as there may be."""
    torch.manual_seed(0)
    x = torch.randn(4096, 32)
    massive = torch.arange(len(x)) % 16 == 0
    x[massive] += 500 * torch.randn(32)
    sae = Sae(32, shape(num_latents=256, inference_l0=2.5))
    learner = SaeLearner(
        sae, tokens_per_step=4096, auxk_alpha=0.0, dead_feature_threshold=10**7, compute_dtype=torch.float32,
        recipe=Recipe.named("default", 100, 3.0),
    )  # fmt: skip
    learner.initialise(x)
    calibration = learner.calibration()
    for part in x.split(1000):
        calibration.add(Pair(part, None))
    assert calibration.end() and not calibration.end()
    fired = (sae.encode(x).top_acts > 0).sum(1).float()
    assert fired[massive].min() > 10 and fired[~massive].mean().item() == pytest.approx(2.5, rel=0.01)
    evaluated = evaluate_reconstruction({"h": sae}, [{"h": x}], {"h": learner.rule})["h"]
    assert evaluated.l0 == pytest.approx(2.5, rel=0.01) and evaluated.massive_tokens == massive.sum()


def test_what_inference_keeps_changes_the_threshold_alone(make: Make) -> None:
    whole, fewer = (Sae.load_many(make(sae=shape(inference_l0=l0), run_name=str(l0)).fit()) for l0 in (None, 3))
    for name, sae in fewer.items():
        assert sae.cfg.inference_l0 == 3 and sae.cfg.l0 == 3 and whole[name].cfg.l0 == K
        before, after = whole[name].state_dict(), sae.state_dict()
        assert after.pop("threshold") > before.pop("threshold")
        assert all(torch.equal(tensor, before[tensor_name]) for tensor_name, tensor in after.items())


def test_a_resumed_run_keeps_what_inference_keeps(make: Make) -> None:
    options: dict[str, Any] = {"sae": shape(inference_l0=3), "save_every": 4}
    straight = Sae.load_many(make(run_name="straight", **options).fit())
    stopped = make(run_name="stopped", **options)
    stop_after(stopped, 6)
    resumed = Sae.load_many(make(run_name="stopped", resume=True, **options).fit())
    for name, sae in straight.items():
        assert all(torch.equal(t, resumed[name].state_dict()[key]) for key, t in sae.state_dict().items())


def test_a_dictionary_that_is_trained_further_may_keep_fewer_at_inference(make: Make) -> None:
    start = str(make(run_name="start").fit())
    kept, fewer = (make(sae=shape(inference_l0=l0), run_name=str(l0), finetune=start, lr=1e-5) for l0 in (None, 3))
    folders = [trainer.fit() for trainer in (kept, fewer)]
    for trainer, folder, wanted in zip((kept, fewer), folders, (K, 3), strict=True):
        for l0 in held_out_l0(trainer, folder).values():
            assert l0 == pytest.approx(wanted, rel=0.02)
    again = make(run_name="again", finetune=str(folders[1]), lr=1e-5)
    assert {sae.cfg.inference_l0 for sae in again.saes.values()} == {3}
    with pytest.raises(ValueError, match="inference_l0 must be above 0 and at most k=6, got 7"):
        make(sae=SaeConfig(num_latents=96, selection="batchtopk", inference_l0=7), run_name="more", finetune=start)


def stream_of(sequences: int) -> IterableDataset:
    """Tiny tokens of which nobody knows how many there are."""
    rows = tiny_tokens(sequences, 8, seed=1)
    return IterableDataset.from_generator(lambda: ({"input_ids": row.tolist()} for row in rows))


def test_a_stream_that_ends_where_a_checkpoint_was_saved_is_calibrated_too(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(data=stream_of(2128), max_tokens=84 * 8 * 4, save_every=2)
    folder = trainer.fit()
    assert trainer.step % 2 == 0 and folder.name == f"step_{trainer.step}" and trainer.step < trainer.total_steps
    for l0 in held_out_l0(trainer, folder).values():
        assert l0 == pytest.approx(K, rel=0.02)
    monkeypatch.setattr(SaeTrainer, "calibrate", lambda self: False)
    plain = make(data=stream_of(2128), max_tokens=84 * 8 * 4, save_every=2, run_name="plain").fit()
    assert all(not torch.equal(sae.threshold, Sae.load_many(plain)[name].threshold)  # type: ignore[arg-type]
               for name, sae in Sae.load_many(folder).items())  # fmt: skip


@pytest.mark.parametrize("selection", ["batchtopk", "topk"])
def test_the_model_reads_what_is_held_out_once_at_the_end(
    make: Make, monkeypatch: pytest.MonkeyPatch, selection: Any
) -> None:
    trainer = make(sae=shape(selection=selection))
    trainer._train = lambda log: None  # type: ignore[method-assign]
    read: list[int] = []
    batches = trainer.store.held_out_batches

    def counting() -> Any:
        read.append(1)
        return batches()

    monkeypatch.setattr(trainer.store, "held_out_batches", counting)
    trainer.fit()
    assert len(read) == 1  # the end; the first look reads less


@pytest.mark.parametrize("selection", ["batchtopk", "groupmax"])
@pytest.mark.parametrize("num_latents", [1024, 4608])
def test_while_k_grows_every_step_works_and_the_dictionary_keeps_k(selection: str, num_latents: int) -> None:
    torch.manual_seed(0)
    sae = Sae(32, SaeConfig(num_latents=num_latents, k=32, selection=selection))  # type: ignore[arg-type]
    recipe = Recipe.named("default", 100, 3.0)
    options = {"tokens_per_step": 2048, "auxk_alpha": 0.0, "dead_feature_threshold": 10**7}
    learner = SaeLearner(sae, compute_dtype=torch.float32, recipe=recipe, **options)  # type: ignore[arg-type]
    x = torch.randn(256, 32)
    learner.initialise(x)
    widths = []
    for step in range(0, 100, 8):
        learner.begin_step(step, 100)
        learner.accumulate(x)
        learner.update(1e-6)
        widths.append(learner.read_metrics().l0)
        kept = (sae.encode(x).top_acts > 0).sum(1).double().mean().item()
        assert kept == pytest.approx(32, rel=0.1)
    assert widths[0] < 25 and widths[-1] == pytest.approx(32, rel=0.1)


def test_the_divisor_that_is_nearest() -> None:
    assert [nearest_divisor(n, 1024, most=32) for n in (8, 16, 24, 32)] == [8, 16, 16, 32]
    assert [nearest_divisor(n, 4608, most=32) for n in (8, 16, 24, 32)] == [8, 16, 24, 32]
    assert nearest_divisor(3, 7, most=7) == 1


def test_weights_and_optimizer_are_those_of_a_run_that_is_not_calibrated(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = make(run_name="fitted").fit()
    monkeypatch.setattr(SaeTrainer, "calibrate", lambda self: False)
    plain = make(run_name="plain").fit()
    for name, sae in Sae.load_many(fitted).items():
        other = Sae.load_many(plain)[name].state_dict()
        same = {key: torch.equal(value, other[key]) for key, value in sae.state_dict().items()}
        assert {key for key, equal in same.items() if not equal} == {"threshold"}


def test_a_run_that_ended_is_calibrated_again_when_it_is_resumed(make: Make) -> None:
    trainer = make(run_name="run")
    folder = trainer.fit()
    before = {name: sae.threshold for name, sae in Sae.load_many(folder).items()}
    again = make(run_name="run", resume=True)
    assert again.fit() == folder
    for name, sae in again.saes.items():
        assert torch.equal(sae.threshold, before[name])  # type: ignore[arg-type]
