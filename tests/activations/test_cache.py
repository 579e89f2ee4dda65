"""Training from a cache: the run that a live one would have been, without the language model."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_inputs import READING, text
from tiny_models import save_tiny, tiny_model
from whole_runs import SEQ, evaluation, losses, make_tokens, stop_after, weights, weights_only

import sae.__main__
import sae.lm
from sae import Sae, SaeConfig, SaeTrainer, TrainConfig, evaluate
from sae.commands.cache import cache_activations
from sae.config import CacheConfig
from sae.data import ActivationCache

pytestmark = pytest.mark.usefixtures("no_picture")

LAYERS = ["layers.0", "layers.2"]


def cached(folder: Path, of: torch.dtype = torch.float32, **changes: Any) -> ActivationCache:
    """A cache in the type of the model, which is `of`."""
    options: dict[str, Any] = {"batch_size": 4, "hookpoints": LAYERS, "model": "m", "dataset": "d"}
    options |= {"dtype": str(of).removeprefix("torch."), "activations": str(folder)} | changes
    model = tiny_model("gpt_neox").to(of)
    return ActivationCache(cache_activations(CacheConfig(**options), make_tokens(104), model))


def trainer(folder: Path, data: Any, model: Any = None, **changes: Any) -> SaeTrainer:
    options = {"batch_size": 4, "save_dir": str(folder), "log_to_wandb": False, "lr": 3e-3} | changes
    return SaeTrainer(TrainConfig(SaeConfig(expansion_factor=4, k=4), **options), data, model)


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {"exclude_positions": [0], "exclude_tokens": [150, 151]}),
        (torch.float32, {"exclude_positions": [2], "batch_size": 2, "grad_acc_steps": 2, "max_tokens": 64 * SEQ}),
    ],
    ids=["plain", "excluding", "accumulating"],
)
def test_a_cache_in_a_live_runs_order_trains_the_same_autoencoders_to_the_bit(
    tmp_path: Path, dtype: torch.dtype, changes: dict[str, Any]
) -> None:
    model, tokens = tiny_model("gpt_neox").to(dtype), make_tokens(104)
    live = trainer(tmp_path, tokens, model, run_name="live", hookpoints=LAYERS, **changes)
    reading = {name: value for name, value in changes.items() if name != "max_tokens"}
    cache = cached(tmp_path / "c", dtype, shuffle=False, **reading)
    from_cache = trainer(tmp_path, cache, run_name="cached", **{n: v for n, v in changes.items() if "exclude" not in n})
    assert weights(live.fit()) == weights(from_cache.fit())
    assert losses(live.folder.metrics) == losses(from_cache.folder.metrics)
    assert evaluation(live.folder.path) == evaluation(from_cache.folder.path)


@pytest.mark.parametrize(
    "around",
    [partial(torch.device, "meta"), partial(torch.autocast, "cpu", dtype=torch.bfloat16), torch.inference_mode],
    ids=["device", "autocast", "inference"],
)
def test_what_a_program_has_set_around_changes_no_cache(tmp_path: Path, around: Any) -> None:
    model, tokens = tiny_model("gpt_neox"), make_tokens()

    def rows(name: str) -> dict[str, bytes]:
        cfg = CacheConfig(model="m", dataset="d", activations=str(tmp_path / name), batch_size=4, hookpoints=LAYERS)
        folder = Path(cache_activations(cfg, tokens, model))
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.rows")}

    expected = rows("usual")
    with around():
        found = rows("around")
    assert found == expected != {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_shuffled_cache_trains_as_well_and_is_measured_on_the_same_held_out_tokens(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model, tokens = tiny_model("gpt_neox").to(dtype), make_tokens(104)
    live = trainer(tmp_path, tokens, model, run_name="live", hookpoints=LAYERS)
    from_cache = trainer(tmp_path, cached(tmp_path / "c", dtype), run_name="cached")
    before = live.held_out_quality()
    assert from_cache.held_out_quality() == before
    live.fit(), from_cache.fit()
    after, expected = evaluation(from_cache.folder.path), evaluation(live.folder.path)
    for name in LAYERS:
        assert after[name]["tokens"] == expected[name]["tokens"]
        assert abs(after[name]["fvu"] - expected[name]["fvu"]) < 0.2 * (before[name].fvu - expected[name]["fvu"])


def test_int8_measures_what_bfloat16_does_within_its_rounding(tmp_path: Path) -> None:
    exact, rounded = cached(tmp_path / "a"), cached(tmp_path / "b", dtype="int8")
    one, other = (trainer(tmp_path, cache).held_out_quality() for cache in (exact, rounded))
    for name in LAYERS:
        assert one[name].fvu != other[name].fvu == pytest.approx(one[name].fvu, rel=0.01)
    assert rounded.header.options == exact.header.options


def test_stopping_and_resuming_from_a_cache_equals_not_stopping(tmp_path: Path) -> None:
    cache = cached(tmp_path / "c")
    straight = trainer(tmp_path, cache, run_name="straight").fit()
    stopped = trainer(tmp_path, cache, run_name="stopped")
    stop_after(stopped, 7)
    resumed = trainer(tmp_path, cache, run_name="stopped", resume=True).fit()
    assert weights_only(resumed) == weights_only(straight)


def test_any_of_the_cached_hookpoints_can_be_trained_and_no_other(tmp_path: Path) -> None:
    cache = cached(tmp_path / "c")
    for choice in ({"layers": [2]}, {"hookpoints": ["layers.[12]"]}, {"hookpoints": ["layers.2"]}):
        assert list(trainer(tmp_path, cache, **choice).saes) == ["layers.2"]
    assert list(trainer(tmp_path, cache, layer_stride=2).saes) == list(trainer(tmp_path, cache).saes) == LAYERS
    for choice, word in (({"layers": [1]}, "layers.1"), ({"layers": [7]}, "layer 7"), ({"hookpoints": ["h.*"]}, "h.*")):
        with pytest.raises(ValueError, match="lack .*; choose among layers.0, layers.2, or cache them") as error:
            trainer(tmp_path, cache, **choice)
        assert word in str(error.value)


def test_what_the_cache_has_decided_cannot_be_chosen_again(tmp_path: Path) -> None:
    cache = cached(tmp_path / "c", exclude_positions=[0])
    with pytest.raises(ValueError, match=r"exclude_positions must be .* \[0\], got \[1\]; leave it out"):
        trainer(tmp_path, cache, exclude_positions=[1])
    with pytest.raises(ValueError, match="model must be left out"):
        trainer(tmp_path, cache, tiny_model("gpt_neox"))
    with pytest.raises(ValueError, match="model must be given unless .* got Tensor"):
        trainer(tmp_path, make_tokens())
    with pytest.raises(ValueError, match="one step .* tokens"):
        trainer(tmp_path, cache, batch_size=200)


# From the command line


TRAINING = ["--batch_size", "4", "--expansion_factor", "4", "--k", "4", "--no_log_to_wandb", "--save_dir", "runs"]


def test_tokens_of_a_mixed_cache_that_fill_no_step_are_not_told_as_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mixed = [*READING, "--exclude_positions", "0", "1", "2", "3", "--activations", "few"]
    assert sae.__main__.main(["cache", *text(tmp_path), *mixed]) == 0
    assert sae.__main__.main(["--activations", "few", *TRAINING]) == 0
    assert "are left out" not in capsys.readouterr().err  # 1,392 tokens are 21 batches, and 48 more


def test_the_command_line_trains_from_a_cache_without_the_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokens = text(tmp_path)
    assert sae.__main__.main(["cache", model, tokens, *READING]) == 0
    said = capsys.readouterr()
    tokens_cached = 29 * 4 * 16
    assert f"caching up to {tokens_cached:,} tokens at 2 hookpoints in bfloat16: " in said.err
    assert "sequences to train on are left out" not in said.err  # they are 29 batches
    assert said.out.split() == ["activations", "activations/model-tokens"]
    assert sae.__main__.main(["cache", model, tokens, *READING, "--batch_size", "9", "--activations", "nines"]) == 0
    assert "3 of the 111 sequences to train on are left out" in capsys.readouterr().err
    for name in ("load_model", "load_skeleton", "load_config", "load_tokenizer", "harvest"):
        monkeypatch.setattr(sae.lm, name, None)
    assert sae.__main__.main(["--activations", "activations/model-tokens", *TRAINING]) == 0
    assert list(evaluation(Path("runs/model-tokens"))) == LAYERS
    assert "are left out" not in capsys.readouterr().err
    assert sae.__main__.main(["--activations", "activations/model-tokens", *TRAINING, "--grad_acc_steps", "3"]) == 0
    assert "8 of the 116 sequences to train on are left out" in capsys.readouterr().err
    options = json.loads(Path("runs/model-tokens/config.json").read_text())["options"]
    assert (options["model"], options["dataset"], options["ctx_len"]) == (model, tokens, 16)
    assert sae.__main__.main([model, tokens, "--activations", "activations/model-tokens", *TRAINING]) == 0
    capsys.readouterr()
    for arguments, words in {
        ("other", tokens, "--activations", "activations/model-tokens"): "model must be that of the activations",
        ("--activations", "activations/model-tokens", "--ctx_len", "32"): "ctx_len must be that of the activations, 16",
        ("--activations", "activations"): "must name a cache that sae cache wrote",
        ("--activations", "activations/model-tokens", "--streaming"): "streaming must be that of the activations",
    }.items():
        assert sae.__main__.main(list(arguments)) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("where", ["on the command line", "in Python"])
def test_what_was_trained_from_a_cache_is_measured_on_the_tokens_that_the_cache_holds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sae.report.evaluation.draw_all", lambda evaluation, out: {})
    model, tokens = text(tmp_path)
    reading = [*READING, "--exclude_positions", "0", "--seed", "3"]
    assert sae.__main__.main(["cache", model, tokens, *reading, "--activations", "c"]) == 0
    if where == "in Python":
        trainer(Path("runs"), ActivationCache("c"), run_name="run").fit()
    else:
        assert sae.__main__.main(["--activations", "c", *TRAINING, "--run_name", "run", "--lr", "3e-3"]) == 0
    capsys.readouterr()
    assert sae.__main__.main(["eval", "runs/run", "--out", "found"]) == 0
    said = capsys.readouterr().err
    assert "Measured on 4 of the sequences that runs/run held out" in said and "may have seen" not in said
    document = json.loads(Path("found/eval.json").read_text())
    assert document["data"]["tokens"] == 4 * 15
    lm_ = sae.lm.load_model(model, device="cpu", dtype=torch.float32, head=True)
    held_out = ActivationCache("c").held_out_tokens()
    expected = evaluate(lm_, held_out, Sae.load_many("runs/run"), exclude_positions=[0])
    for name, metrics in evaluation(Path("runs/run")).items():
        found = document["results"]["runs/run"][name]["metrics"]
        assert found["fvu"] == pytest.approx(metrics["fvu"], rel=5e-3)
        assert found["ce_loss_without_sae"] == pytest.approx(expected[name].metrics["ce_loss_without_sae"], rel=5e-3)


@pytest.mark.parametrize("what", ["model", "data"])
def test_a_model_or_data_that_was_replaced_is_not_cached_together_with_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokens = text(tmp_path)
    command = ["cache", model, tokens, *READING, "--activations", "c"]
    assert sae.__main__.main(command) == 0
    for unfinished in (False, True):
        if unfinished:
            text(tmp_path)
            shutil.rmtree("c")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sae.activations.cache.write._Writer.finish", die)
                with pytest.raises(RuntimeError):
                    sae.__main__.main(command)
        if what == "model":
            save_tiny(Path(model), "gpt_neox", seed=1)
        else:
            np.fromfile(tokens, np.uint16)[::-1].tofile(tokens)
        before = {path: path.read_bytes() for path in Path("c").rglob("*") if path.is_file()}
        assert sae.__main__.main(command) == 2
        assert {"model": "the model has other weights", "data": "the data hold other"}[what] in capsys.readouterr().err
        assert before == {path: path.read_bytes() for path in Path("c").rglob("*") if path.is_file()}


def test_a_cache_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    monkeypatch.setattr(sae.lm, "load_config", None)
    assert sae.__main__.main(["cache", "model", "data.txt", "--activations", "file/cache"]) == 2
    assert "activations must be a folder, but" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["cache", "train"])
def test_a_token_or_position_that_there_is_not_is_no_way_to_exclude_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokens = text(tmp_path)
    monkeypatch.setattr("sae.data.load_data", None)
    before = sorted(tmp_path.rglob("*"))
    for options, words in {
        ("--exclude_tokens", "3", "99999"): "exclude_tokens must be below the model's vocabulary size 320, got 99999",
        (
            "--exclude_positions",
            "0",
            "16",
        ): "exclude_positions must be positions, from 0, in sequences of ctx_len=16 to",
    }.items():
        assert sae.__main__.main([command, model, tokens, *READING, *options]) == 2
        assert words in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="exclude_tokens must be below .* 320, got 320, which excludes nothing"):
        trainer(tmp_path, make_tokens(), tiny_model("gpt_neox"), exclude_tokens=[320])
    with pytest.raises(ValueError, match=f"ctx_len={SEQ} tokens, got {SEQ}, which excludes nothing"):
        trainer(tmp_path, make_tokens(), tiny_model("gpt_neox"), exclude_positions=[SEQ])
    saes = {"layers.0": Sae(32, SaeConfig(num_latents=64, k=4))}
    with pytest.raises(ValueError, match="exclude_positions must be"):
        evaluate(tiny_model("gpt_neox"), make_tokens(), saes, exclude_positions=[SEQ])


def test_a_cache_and_a_run_are_continued_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text(tmp_path)
    (tmp_path / "here").mkdir()
    for where, model, tokens, c, runs in (("", "model", "tokens.bin", "c", "runs"),
                                          ("here", "../model", "../tokens.bin", "../c", "../runs")):  # fmt: skip
        monkeypatch.chdir(tmp_path / where)
        assert sae.__main__.main(["cache", model, tokens, *READING, "--activations", c]) == 0
        small = [*TRAINING[:-1], runs, "--run_name", "run", *["--resume"] * (where == "here")]
        assert sae.__main__.main([model, tokens, "--activations", c, *small]) == 0, capsys.readouterr().err
    options = json.loads((tmp_path / "runs/run/config.json").read_text())["options"]
    assert options["activations"] == str(tmp_path / "c") and options["model"] == str(tmp_path / "model")


def die(writer: Any) -> None:
    raise RuntimeError("as if killed")


def test_a_cache_of_before_has_no_fingerprints_and_is_trained_on_measured_and_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokens = text(tmp_path)
    command = ["cache", model, tokens, *READING, "--activations", "c"]
    assert sae.__main__.main(command) == 0
    manifest = json.loads(Path("c/manifest.json").read_text())
    del manifest["fingerprints"]
    Path("c/manifest.json").write_text(json.dumps(manifest))
    assert sae.__main__.main(command) == 0
    assert sae.__main__.main(["--activations", "c", *TRAINING, "--run_name", "run"]) == 0
    assert sae.__main__.main(["eval", "runs/run", "--out", "found"]) == 0
    assert "that runs/run held out" in capsys.readouterr().err


def test_a_cache_that_was_replaced_is_not_the_one_that_a_run_is_resumed_on(tmp_path: Path) -> None:
    stop_after(trainer(tmp_path, cached(tmp_path / "c"), run_name="run"), 7)
    (tmp_path / "c").rename(tmp_path / "moved")
    other = cached(tmp_path / "c", dtype="bfloat16")
    with pytest.raises(ValueError, match="the activations of that name now holds"):
        trainer(tmp_path, other, run_name="run", resume=True).fit()
    trainer(tmp_path, ActivationCache(tmp_path / "moved"), run_name="run", resume=True).fit()


@pytest.mark.slow
def test_killed_at_random_moments_the_command_ends_with_the_same_files(tmp_path: Path) -> None:
    model, tokens = text(tmp_path)
    patch = "import sae.activations.cache.write as w; w.SHARD_BYTES = 2**14; w.BUFFER_BYTES = 2**13; w.APPEND_BYTES = 1"
    code = f"{patch}; import sys, sae.__main__; sys.exit(sae.__main__.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "cache", model, tokens, *READING, "--activations"]
    environment = os.environ | {"PYTHONPATH": str(Path(sae.__main__.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    moments, kills = random.Random(0), 0
    for _ in range(3):
        process = subprocess.Popen([*command, str(tmp_path / "c")], env=environment, stderr=subprocess.DEVNULL)
        while not (tmp_path / "c").exists() and process.poll() is None:
            time.sleep(0.001)
        if kills:  # it is there from before: until the model is loaded nothing changes
            time.sleep(3)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills
    subprocess.run([*command, str(tmp_path / "c")], env=environment, check=True, capture_output=True)
    found, expected = (
        {
            str(p.relative_to(tmp_path / name)): p.read_bytes()
            for p in sorted((tmp_path / name).rglob("*"))
            if p.is_file()
        }
        for name in ("c", "whole")
    )
    assert found == expected
