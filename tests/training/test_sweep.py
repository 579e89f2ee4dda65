"""Several configurations over the same activations: each ends as if it had trained alone."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command_inputs import READING, text
from pictures import assert_is_a_picture
from tiny_models import tiny_model
from whole_runs import evaluation, losses, make_tokens, stop_after, weights, weights_only

import sae.__main__
import sae.training.trainer
from sae import Sae, SaeConfig, SaeTrainer, TrainConfig
from sae.commands.cache import cache_activations
from sae.config import CacheConfig
from sae.data import ActivationCache
from sae.report.frontier import frontier
from sae.training.memory_plan import check_fits, check_sweep_fits, training_bytes
from sae.training.run_plan import combinations, plan_saes

pytestmark = pytest.mark.usefixtures("no_picture")

LAYERS = ["layers.0", "layers.2"]
CONFIGS = [SaeConfig(expansion_factor=x, k=k) for x in (2, 4) for k in (2, 5)]


def make(folder: Path, sae: SaeConfig | list[SaeConfig], data: Any = None, **changes: Any) -> SaeTrainer:
    options = {"batch_size": 4, "save_dir": str(folder), "log_to_wandb": False, "hookpoints": LAYERS} | changes
    model = None if isinstance(data, ActivationCache) else tiny_model("gpt_neox")
    return SaeTrainer(TrainConfig(sae, **options), make_tokens() if data is None else data, model)


def in_folder(found: dict[str, bytes], label: str) -> dict[str, bytes]:
    return {name.removeprefix(f"{label}/"): content for name, content in found.items() if name.startswith(f"{label}/")}


@pytest.mark.parametrize("cached", [False, True])
def test_every_combination_is_bit_for_bit_what_it_is_alone(tmp_path: Path, cached: bool) -> None:
    data: Any = None
    if cached:
        cfg = CacheConfig(batch_size=4, hookpoints=LAYERS, activations=str(tmp_path / "c"))
        data = ActivationCache(cache_activations(cfg, make_tokens(), tiny_model("gpt_neox")))
    together = make(tmp_path, CONFIGS, data, run_name="all", lr=[1e-3, 1e-2], dead_feature_threshold=64)
    found = weights(together.fit())
    records = losses(together.folder.metrics)
    for x, k, lr in ((2, 2, 1e-3), (2, 5, 1e-2), (4, 5, 1e-3)):
        label = f"k{k}_x{x}_lr{lr}"
        one = SaeConfig(expansion_factor=x, k=k)
        alone = make(tmp_path, one, data, run_name=label, lr=lr, dead_feature_threshold=64)
        assert weights(alone.fit()) == in_folder(found, label)
        expected = losses(alone.folder.metrics)
        renamed = [{name.removeprefix(f"{label}/"): value for name, value in record.items()} for record in records]
        assert [{name: record[name] for name in expected[0]} for record in renamed] == expected
        measured = evaluation(together.folder.path)
        assert evaluation(alone.folder.path) == {name: measured[f"{label}/{name}"] for name in LAYERS}


def test_seeds_start_from_other_weights_and_read_the_same_tokens_in_the_order_of_the_first(tmp_path: Path) -> None:
    sweep = make(tmp_path, SaeConfig(expansion_factor=2, k=4), seed=[1, 2], run_name="seeds")
    found = weights(sweep.fit())
    alone = weights(make(tmp_path, SaeConfig(expansion_factor=2, k=4), seed=1, run_name="alone").fit())
    assert in_folder(found, "seed1") == alone
    assert all(content != alone[name] for name, content in in_folder(found, "seed2").items())
    wider = make(tmp_path, [SaeConfig(expansion_factor=2, k=k) for k in (4, 3)], seed=[1, 2], run_name="wider")
    assert in_folder(weights(wider.fit()), "k4_seed2") == in_folder(found, "seed2")


def test_a_combination_is_a_checkpoint_of_its_own_and_resumes(tmp_path: Path) -> None:
    straight = make(tmp_path, CONFIGS, run_name="straight").fit()
    stopped = make(tmp_path, CONFIGS, run_name="stopped")
    stop_after(stopped, 4)
    resumed = make(tmp_path, CONFIGS, run_name="stopped", resume=True).fit()
    assert weights_only(resumed) == weights_only(straight)
    loaded = Sae.load_many(straight / "k5_x4")
    assert list(loaded) == LAYERS
    assert {(one.cfg.k, one.num_latents) for one in loaded.values()} == {(5, 4 * 32)}
    assert len(Sae.load_many(straight)) == len(CONFIGS) * len(LAYERS)


def test_finetuning_can_sweep_the_learning_rate(tmp_path: Path) -> None:
    first = make(tmp_path, CONFIGS[0], run_name="first").fit()
    trainer = make(tmp_path, SaeConfig(), run_name="more", finetune=str(first), lr=[1e-3, 1e-2])
    assert all(torch.equal(one.W_dec, Sae.load_many(first)[n.split("/")[1]].W_dec) for n, one in trainer.saes.items())
    saved = trainer.fit()
    two = [Sae.load_many(saved / label)["layers.0"].W_dec for label in ("lr0.001", "lr0.01")]
    assert not torch.equal(*two)


# The plan


def labels(sae: Any, **changes: Any) -> list[str]:
    return [name.removesuffix("/h") for name in plan_saes(combinations(TrainConfig(sae, **changes)), ["h"])]


def test_labels_say_what_varies_and_nothing_else() -> None:
    assert labels(SaeConfig(k=8)) == labels([SaeConfig(k=8)]) == labels(SaeConfig(), lr=[1e-3], seed=[4]) == ["h"]
    assert labels([SaeConfig(k=8), SaeConfig(k=16)], seed=[1, 2]) == ["k8_seed1", "k8_seed2", "k16_seed1", "k16_seed2"]
    assert labels([SaeConfig(num_latents=64), SaeConfig(expansion_factor=4)], lr=[1e-3, None]) == [
        "n64_lr0.001", "n64_lrNone", "x4_lr0.001", "x4_lrNone",
    ]  # fmt: skip
    assert labels([SaeConfig(normalize_decoder=True), SaeConfig(normalize_decoder=False)]) == [
        "normalize_decoderTrue", "normalize_decoderFalse",
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [{"lr": [1e-3, 1e-3]}, {"seed": [1, 1]}, {"sae": [SaeConfig(k=8), SaeConfig(k=8)]}])
def test_the_same_combination_twice_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must differ, got .* twice; leave one of them out"):
        combinations(TrainConfig(**changes))


@pytest.mark.parametrize("changes", [{"lr": [1e-3, 0.0]}, {"lr": [torch.inf]}, {"seed": []}, {"sae": []}])
def test_every_value_of_a_list_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be .*, got"):
        TrainConfig(**changes)


def test_memory_is_announced_and_what_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {"a": 100, "b": 50}
    plans = plan_saes(
        combinations(TrainConfig([SaeConfig(expansion_factor=x, k=k) for x in (8, 64) for k in (4, 8)])), widths
    )
    needed = training_bytes(plans, widths, "gao2024")
    assert needed["k4_x8/a"] == 2 * 100 * 800 * 18 == 4 * needed["k8_x8/b"]
    assert training_bytes(plans, widths, "default")["k4_x8/a"] == 2 * 100 * 800 * 12
    assert training_bytes(plans, widths, "default", whole_gradients=False)["k4_x8/a"] == 2 * 100 * 800 * 8
    total = sum(needed.values())
    assert "8 autoencoders, 4 combinations at each hookpoint, take 0.0" in check_sweep_fits(
        plans, widths, "gao2024", None
    )
    assert "that are free" in check_sweep_fits(plans, widths, "gao2024", total)
    with pytest.raises(ValueError, match="GB are free; drop k8_x64, or train fewer") as error:
        check_sweep_fits(plans, widths, "gao2024", total - 1)
    assert "k4_x64" not in str(error.value)
    monkeypatch.setattr(sae.training.trainer, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match="drop k2_x2, k5_x2, k2_x4, k5_x4"):
        make(tmp_path, CONFIGS)


def test_autoencoders_that_do_not_fit_are_told_with_sizes_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = {"a": 100, "b": 100, "c": 50}
    plans = plan_saes(combinations(TrainConfig(SaeConfig(num_latents=1000))), widths)
    needed = 2 * (100 + 100 + 50) * 1000 * 6  # a weight in 4 bytes and its moment in 2, of encoder and decoder
    check_fits(plans, widths, "default", needed)
    check_fits(plans, widths, "default", needed // 2, parts=2)
    check_fits(plans, widths, "default", None)
    with pytest.raises(ValueError, match="these would fit: --num_latents 999, or 2 hookpoints at a time"):
        check_fits(plans, widths, "default", needed - 1)
    with pytest.raises(ValueError, match="of 3 with 1000 latents take 0.00 GB, .* would fit: --num_latents 66$"):
        check_fits(plans, widths, "default", needed // 15)
    with pytest.raises(ValueError, match="the autoencoders must fit into memory"):  # before any of it is taken
        make(tmp_path, SaeConfig(num_latents=10**12))


# What is shown


def test_the_command_line_sweeps_and_shows_all_combinations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    model, tokens = text(tmp_path)
    chosen = ["--k", "2", "5", "--expansion_factor", "2", "4", "--no_log_to_wandb", "--save_dir", "runs"]
    assert sae.__main__.main([*chosen, model, tokens, *READING, "--max_tokens", "512"]) == 0
    shown = capsys.readouterr()
    assert "8 autoencoders, 4 combinations at each hookpoint, take" in shown.err
    measured = evaluation(Path("runs/model-tokens"))
    assert len(measured) == 8
    for name, metrics in measured.items():
        assert re.search(rf"{name} .*{metrics['fvu']:.4f}", shown.out)
    assert re.search("frontier +runs/model-tokens/frontier.png", shown.out)
    assert_is_a_picture(Path("runs/model-tokens/frontier.png"))
    assert sae.__main__.main([model, tokens, "--k", "2", "2", *READING]) == 2
    assert "must differ, got k2 twice" in capsys.readouterr().err


def test_kinds_of_selection_are_swept_too_and_are_what_they_are_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.chdir(tmp_path)
    model, tokens = text(tmp_path)
    common = [model, tokens, *READING, "--num_latents", "64", "--no_log_to_wandb", "--max_tokens", "512"]
    swept = ["--selection", "topk", "batchtopk", "groupmax", "--k", "4"]
    assert sae.__main__.main([*swept, *common, "--run_name", "all"]) == 0
    assert sae.__main__.main([*common, "--k", "4", "--selection", "groupmax", "--run_name", "alone"]) == 0
    together, alone = (evaluation(Path("checkpoints") / name) for name in ("all", "alone"))
    assert {name.split("/")[0] for name in together} == {"topk", "batchtopk", "groupmax"}
    for hookpoint, metrics in alone.items():
        del metrics["tokens"]
        assert metrics.items() <= together[f"groupmax/{hookpoint}"].items()
    assert sae.__main__.main([*common, "--selection", "topk", "best"]) == 2
    assert "best" in capsys.readouterr().err


def test_the_frontier_is_what_no_other_point_beats() -> None:
    points = [(1.0, 5.0), (2.0, 6.0), (2.0, 3.0), (2.0, 4.0), (4.0, 3.0), (8.0, 1.0), (1.0, 5.0)]
    assert frontier(points) == [(1.0, 5.0), (2.0, 3.0), (8.0, 1.0)]
