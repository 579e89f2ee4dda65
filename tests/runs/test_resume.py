"""Nothing is lost: a run that was stopped, killed or damaged ends with the very weights of one that was not."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import several
import torch
from default_types import default_dtype
from full_disk import files_of_at_most
from safetensors.torch import load_file
from tiny_models import VOCAB_SIZE, tiny_model
from twelve_steps import STEPS, assert_same_end, final_state, make_trainer
from whole_runs import stop_after

from sae import SaeConfig, SaeTrainer, TrainConfig
from sae.runs import checkpoint
from sae.storage.files import short
from sae.training import learner

SERVER = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {support!r})
from several import fork_for_each_line
from twelve_steps import make_trainer
from whole_runs import stop_after
make_trainer({straight!r}).fit()
stop_after(make_trainer({begun!r}), 1)
print("ready", flush=True)
fork_for_each_line(lambda: make_trainer({save_dir!r}, resume=True, save_every=2).fit())
"""
"""Makes a run that is never stopped and one that has begun. Then starts a resumed run in a process of its own for each
line it reads, without importing everything anew. What other tests leave in their process cannot matter."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    make_trainer(folder).fit()
    return folder


@pytest.mark.parametrize("step", [1, 5, 6, 11])
def test_stopping_at_any_step_and_resuming_equals_not_stopping(tmp_path: Path, straight: Path, step: int) -> None:
    stop_after(make_trainer(tmp_path), step)
    make_trainer(tmp_path, resume=True).fit()
    assert_same_end(tmp_path, straight)


def test_stopping_at_every_step_equals_not_stopping(tmp_path: Path, straight: Path) -> None:
    stop_after(make_trainer(tmp_path), 1)
    for step in range(2, STEPS):
        stop_after(make_trainer(tmp_path, resume=True), step)
    make_trainer(tmp_path, resume=True).fit()
    assert_same_end(tmp_path, straight)


def test_resuming_a_finished_run_reports_again_and_changes_nothing(tmp_path: Path, straight: Path) -> None:
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    make_trainer(tmp_path, resume=True).fit()
    assert_same_end(tmp_path, straight)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-7] + b"\x55" + path.read_bytes()[-6:]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        ("truncated", "layers.2/sae.safetensors"),
        ("flipped", "layers.0/state.safetensors"),
        ("flipped", "trainer.json"),
        ("missing", "layers.2/sae.safetensors"),
        ("truncated", "trainer.json"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over_for_the_one_before(
    tmp_path: Path, straight: Path, damage: str, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stop_after(make_trainer(tmp_path, save_every=4), 9)
    DAMAGE[damage](tmp_path / "run" / "step_9" / file)
    capfd.readouterr()
    make_trainer(tmp_path, resume=True).fit()
    said = capfd.readouterr().err
    assert "passed over" in said and f"step_9/{file}" in said and "step_8" in said
    assert_same_end(tmp_path, straight)


def test_without_a_complete_checkpoint_the_run_starts_at_the_beginning(tmp_path: Path, straight: Path) -> None:
    stop_after(make_trainer(tmp_path), 3)
    (tmp_path / "run" / "step_3" / "manifest.json").unlink()
    make_trainer(tmp_path, resume=True).fit()
    assert_same_end(tmp_path, straight)


def test_a_changed_option_is_named_and_refused(tmp_path: Path) -> None:
    stop_after(make_trainer(tmp_path), 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"lr was 0.003 and is 0.004, layers was \[0, 2\] and is \[0\]"):
        make_trainer(tmp_path, resume=True, lr=4e-3, layers=[0])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume must name a run, but .*/run holds none"):
        make_trainer(tmp_path, resume=True)


def test_an_unnamed_run_resumes_the_last_of_its_name(tmp_path: Path) -> None:
    stop_after(make_trainer(tmp_path, run_name=None), 2)
    stop_after(make_trainer(tmp_path, run_name=None), 3)
    resumed = make_trainer(tmp_path, run_name=None, resume=True)
    assert resumed.folder.path.name.endswith("-2")
    resumed.resume()
    assert resumed.step == 3


@pytest.mark.parametrize("stops", [[3, 4, 5], [7]])
def test_the_best_and_the_newest_are_those_of_a_run_that_was_not_stopped(tmp_path: Path, stops: list[int]) -> None:
    options = {"save_best": True, "save_every": 2, "keep_last": 2, "lr": 3e-2}
    make_trainer(tmp_path / "straight", **options).fit()
    for index, step in enumerate(stops):
        stop_after(make_trainer(tmp_path / "stopped", resume=index > 0, **options), step)
    make_trainer(tmp_path / "stopped", resume=True, **options).fit()
    assert_same_end(tmp_path / "stopped", tmp_path / "straight")
    straight, stopped = (tmp_path / name / "run" for name in ("straight", "stopped"))
    assert (straight / "best.json").read_text() == (stopped / "best.json").read_text()
    best, fvu = checkpoint.best(stopped) or (None, None)
    assert best is not None and {path.name for path in stopped.glob("*step*")} == {best.name, "step_10", "step_12"}
    measured = {
        name: one.fvu for name, one in make_trainer(tmp_path / "new", finetune=str(best)).held_out_quality().items()
    }
    assert sum(measured.values()) / len(measured) == fvu


@pytest.mark.parametrize("step", [4, STEPS])
def test_a_stop_in_the_step_of_a_checkpoint_that_is_due_leaves_none_unmeasured(tmp_path: Path, step: int) -> None:
    options = {"save_best": True, "save_every": 4}
    make_trainer(tmp_path / "straight", **options).fit()
    stop_after(make_trainer(tmp_path / "stopped", **options), step)
    make_trainer(tmp_path / "stopped", resume=True, **options).fit()
    measured = [
        {
            path.parent.name: json.loads(path.read_text())["held_out_fvu"]
            for path in folder.glob("run/step_*/trainer.json")
        }
        for folder in (tmp_path / "straight", tmp_path / "stopped")
    ]
    assert measured[0] == measured[1] and set(measured[0]) == {"step_4", "step_8", "step_12"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    paths = {name: str(tmp_path / name) for name in ("straight", "begun")}
    code = SERVER.format(support=str(Path(several.__file__).parent), save_dir=str(tmp_path), **paths)
    with (tmp_path / "stderr").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True
        )
        assert process.stdout is not None
        while (line := process.stdout.readline().strip()) != "ready":
            assert line or process.poll() is None, (tmp_path / "stderr").read_text()[-2000:]
        yield process
        process.kill()
        process.communicate()


def entries(run: Path, within: str) -> set[tuple[str, int]]:
    """Files below `run`, with `within` in their path, and when each changed; one that vanishes does not matter."""
    found = set()
    for parent, _, files in os.walk(run):
        for path in (os.path.join(parent, file) for file in files if within in parent):
            with suppress(FileNotFoundError):
                found.add((path, os.stat(path).st_mtime_ns))
    return found


def run_once(server: subprocess.Popen[str], run: Path, kill_after: float | None, *, within: str = "") -> int:
    """Resume the run, kill it -9 so many seconds after it first wrote something (`within`); its exit code."""
    assert server.stdin is not None and server.stdout is not None
    before = entries(run, within)
    server.stdin.write("\n")
    server.stdin.flush()
    while not (line := server.stdout.readline().strip()).isdigit():
        assert line, "the server has died"  # what the training prints comes in between
    child = int(line)
    if kill_after is not None:
        begun = time.monotonic()
        while not entries(run, within) - before and time.monotonic() - begun < 5:
            pass  # a save takes a few milliseconds
        time.sleep(kill_after)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    while not (line := server.stdout.readline().strip()).removeprefix("-").isdigit():
        assert line, "the server has died"
    return int(line)


@pytest.mark.slow
def test_killed_at_thirty_random_moments_a_run_still_ends_bit_for_bit_the_same(
    tmp_path: Path, server: subprocess.Popen[str]
) -> None:
    moments, kills, in_a_save = random.Random(0), 0, 0
    straight, begun = tmp_path / "straight", tmp_path / "begun" / "run"
    shutil.copytree(begun, tmp_path / "run")
    while kills < 30:
        aimed = {"kill_after": moments.uniform(0, 0.004), "within": ".partial"}
        anywhere = {"kill_after": moments.uniform(0, 0.15)}
        status = run_once(server, tmp_path / "run", **(aimed if kills % 2 else anywhere))
        assert status in (0, -signal.SIGKILL), (tmp_path / "stderr").read_text()[-2000:]
        kills += status != 0
        in_a_save += status != 0 and any((tmp_path / "run").glob(".step_*.partial"))
        if status == 0:
            assert_same_end(tmp_path, straight)
            shutil.rmtree(tmp_path / "run")
            shutil.copytree(begun, tmp_path / "run")
    assert in_a_save >= 3
    assert run_once(server, tmp_path / "run", None) == 0, (tmp_path / "stderr").read_text()[-2000:]
    assert_same_end(tmp_path, straight)


# Resuming with other options


def test_a_change_that_is_told_is_made_and_written_down_and_needs_no_telling_again(tmp_path: Path) -> None:
    stop_after(make_trainer(tmp_path), 4)
    told = {"resume": True, "lr": 4e-3, "max_tokens": 10 * 64}
    stop_after(make_trainer(tmp_path, **told, resume_changed=["lr", "max_tokens"]), 6)
    document = json.loads((tmp_path / "run" / "config.json").read_text())
    assert document["changes"] == [{"lr": [3e-3, 4e-3], "max_tokens": [None, 640]}]
    assert (document["options"]["lr"], document["options"]["max_tokens"]) == (4e-3, 640)
    trainer = make_trainer(tmp_path, **told)
    trainer.resume()
    assert (trainer.step, trainer.total_steps) == (6, 10)
    assert trainer.learning_rate("layers.0") == pytest.approx(4e-3 * 4 / 10)
    with pytest.raises(ValueError, match="lr was 0.004 and is 0.003"):
        make_trainer(tmp_path, **told | {"lr": 3e-3})
    assert trainer.fit().name == "step_10"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 4e-3}, "lr was 0.003 and is 0.004; .*, or tell that it is meant: --resume_changed lr$"),
        ({"lr": 4e-3, "resume_changed": ["auxk_alpha"]}, "lr was 0.003 and is 0.004"),
        ({"seed": 1, "resume_changed": ["seed"]}, "resume_changed must name options that can change .*, got seed"),
        ({"k": 5}, "but k was 4 and is 5; use the options of .*config.json$"),
        ({"batch_size": 4}, "batch_size was 2 and is 4; use the options of .*config.json$"),
        ({"finetune": "x", "resume_changed": ["finetune"]}, "finetune was None and is 'x'; use .*config.json$"),
        ({"resume": False, "resume_changed": ["lr"]}, "resume_changed must come with resume, got lr without"),
    ],
)
def test_a_change_that_is_not_told_or_cannot_be_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    stop_after(make_trainer(tmp_path), 2)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **{"resume": True} | changes)


@pytest.mark.parametrize("lr", [3e-3, [3e-3, 6e-3]])
def test_a_run_that_trains_dictionaries_further_goes_on_without_the_files_that_it_began_with(
    tmp_path: Path, lr: float | list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_trainer("first").fit()
    options = {"finetune": "first/run", "lr": lr}
    make_trainer("straight", **options).fit()
    for step in (4, 6):
        stop_after(make_trainer("stopped", **options, resume=step > 4), step)
    Path("first").rename("elsewhere")
    (next(Path("stopped/run/step_6").rglob("sae.safetensors"))).write_bytes(b"damaged")
    hashed, sha256_of = list[Path](), checkpoint.sha256_of
    monkeypatch.setattr(checkpoint, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    make_trainer("stopped", resume=True, **options).fit()
    assert_same_end(Path("stopped"), Path("straight"))
    of_begun = [path for path in hashed if path.parts[2] == "step_4" and path.name == "sae.safetensors"]
    assert len(of_begun) == 2 * len(set(of_begun))  # where it is looked for, and where it is read
    with pytest.raises(ValueError, match="finetune was '.*/first/run' and is None; use the options of .*config.json$"):
        make_trainer("stopped", resume=True, lr=lr, resume_changed=["finetune"])


def test_an_option_that_the_run_did_not_know_yet_had_its_default(tmp_path: Path, straight: Path) -> None:
    stop_after(make_trainer(tmp_path), 2)
    path = tmp_path / "run" / "config.json"
    document = json.loads(path.read_text())
    for name in ("keep_last", "auxk_alpha", "resume_changed"):
        del document["options"][name]
    for name in ("crosscode", "prefixes"):
        del document["options"]["sae"][name]
    path.write_text(json.dumps(document))
    make_trainer(tmp_path, resume=True).fit()
    assert_same_end(tmp_path, straight)


# What training draws, and where its state is


@pytest.mark.parametrize(
    "around",
    [*(partial(default_dtype, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)),
     partial(torch.autocast, "cpu", dtype=torch.bfloat16), partial(torch.device, "meta"), partial(torch.no_grad),
     partial(torch.inference_mode)],
    ids=["bfloat16", "float16", "float64", "autocast", "device", "no_grad", "inference"],
)  # fmt: skip
def test_defaults_of_pytorch_that_a_program_has_set_change_nothing(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, around: Any
) -> None:
    model = tiny_model("gpt_neox")
    monkeypatch.setattr("twelve_steps.tiny_model", lambda family: model)
    with nullcontext() if around.func is torch.device else around():  # where the tokens are, is said by who makes them
        trainer = make_trainer(tmp_path)
    with around():
        trainer.fit()
    assert_same_end(tmp_path, straight)
    assert (tmp_path / "run/evaluation.json").read_text() == (straight / "run/evaluation.json").read_text()


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("loss_fn", ["fvu", "kl"])
def test_a_trainer_may_be_made_or_run_where_gradients_are_off(tmp_path: Path, around: Any, loss_fn: str) -> None:
    model = tiny_model("gpt_neox", causal_lm=True)

    def trained(where: str, made: Any, run: Any) -> dict[str, torch.Tensor]:
        tokens = torch.randint(3, VOCAB_SIZE, (12, 16), generator=torch.Generator().manual_seed(5))
        cfg = TrainConfig(SaeConfig(num_latents=64, k=4), batch_size=4, save_dir=str(tmp_path / where), lr=3e-3,
                          log_to_wandb=False, run_name="run", layers=[1], loss_fn=loss_fn,
                          reconstruct_first=0.0 if loss_fn == "kl" else None)  # fmt: skip
        with made():
            trainer = SaeTrainer(cfg, tokens, model)
        with run():
            return load_file(trainer.fit() / "layers.1/sae.safetensors")

    expected = trained("usual", nullcontext, nullcontext)
    for where, made, run in (("made", around, nullcontext), ("run", nullcontext, around), ("both", around, around)):
        found = trained(where, made, run)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), where


def test_training_draws_from_no_global_generator(tmp_path: Path) -> None:
    """So none of their states has to be saved. Python's is drawn from by the checks of shapes in these tests."""
    for path in Path(checkpoint.__file__).parent.rglob("*.py"):
        assert not re.search(r"^\s*(import|from) random\b", path.read_text(), re.MULTILINE), path

    def states() -> tuple[Any, ...]:
        return np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()

    trainer, before = make_trainer(tmp_path, save_best=True, save_every=3), states()
    stop_after(trainer, STEPS - 1)
    assert states() == before


def test_metrics_that_are_damaged_do_not_stand_in_the_way_of_resuming(tmp_path: Path, straight: Path) -> None:
    stop_after(make_trainer(tmp_path), 3)
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'\x00\x00\x00\n[1]\n{"step": "x"}\n{"step": 4, "tokens"')
    make_trainer(tmp_path, resume=True).fit()
    assert_same_end(tmp_path, straight)


# A disk that is full


def fill(folder: Path, leave: int) -> Path:
    left = shutil.disk_usage(folder).free - leave
    (folder / "filler").write_bytes(b"x" * left)
    return folder / "filler"


def test_a_disk_that_fills_up_stops_the_run_keeps_what_was_saved_and_with_room_it_goes_on(
    small_disk: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"save_every": 4, "keep_last": 2}
    make_trainer(tmp_path / "straight", **options).fit()
    trainer = make_trainer(small_disk, **options)
    train_step = trainer.train_step

    def filling() -> bool:
        went_on = train_step()
        if trainer.step == 6:
            trainer.persistence.settle()  # what is written of step 4
            fill(small_disk, leave=20_000)
        return went_on

    trainer.train_step = filling  # type: ignore[method-assign]
    with pytest.raises(OSError, match=r"step_8 cannot be written \(.*No space left on device.*\); make room") as failed:
        trainer.fit()
    saved = small_disk / "run" / "step_4"
    assert re.fullmatch(rf"stopped at step \d+, not saved; the last checkpoint is {saved}", failed.value.__notes__[0])
    assert {path.name for path in (small_disk / "run").iterdir()} == {"config.json", "metrics.jsonl", "step_4"}
    checkpoint.check(saved)
    (small_disk / "filler").unlink()
    make_trainer(small_disk, resume=True, **options).fit()
    assert_same_end(small_disk, tmp_path / "straight")


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(tmp_path: Path, straight: Path) -> None:
    """What quotas do, without being root."""
    trainer = make_trainer(tmp_path, save_every=4)
    train_step, limits = trainer.train_step, ExitStack()

    def limiting() -> bool:
        went_on = train_step()
        if trainer.step == 6:
            trainer.persistence.settle()  # what is written of step 4
            limits.enter_context(files_of_at_most(15_000))
        return went_on

    trainer.train_step = limiting  # type: ignore[method-assign]
    with limits, pytest.raises(OSError, match=r"step_8 cannot be written \(.*File too large.*\); make room"):
        trainer.fit()
    assert {path.name for path in (tmp_path / "run").glob("*step*")} == {"step_4"}
    make_trainer(tmp_path, resume=True, save_every=4).fit()
    assert_same_end(tmp_path, straight)


# What is not finite


@pytest.mark.parametrize("what", ["loss", "b_enc", "radial"])
@pytest.mark.parametrize("step", [0, 5])
def test_a_nan_in_a_step_stops_by_name_and_saves_the_weights_before_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, step: int
) -> None:
    trainer, original = make_trainer(tmp_path), learner.pullback
    before: dict[str, torch.Tensor] = {}

    def poisoned(weights: Any, *arguments: Any, **options: Any) -> Any:
        grads, recon = original(weights, *arguments, **options)
        if trainer.step == step and weights is trainer.learners["layers.2"]._weights:
            before.update({name: t.clone() for name, t in trainer.saes["layers.2"].state_dict().items()})
            (recon.squared_error if what == "loss" else getattr(grads, what)[3]).fill_(torch.inf)
        return grads, recon

    monkeypatch.setattr(learner, "pullback", poisoned)
    with pytest.raises(FloatingPointError, match=f"layers.2: the loss is not finite at step {step + 1}, before batch"):
        trainer.fit()
    monkeypatch.undo()
    saved = checkpoint.latest(tmp_path / "run")
    assert saved is not None and saved.name == f"step_{step + 1}"
    found = load_file(saved / "layers.2" / "sae.safetensors")
    assert before.keys() == found.keys()
    for name in before:  # rows of W_dec are brought to unit length once more
        torch.testing.assert_close(found[name], before[name], rtol=1e-6, atol=1e-7)
    make_trainer(tmp_path, resume=True).fit()
    assert all(t.isfinite().all() for t in final_state(tmp_path).values())


@pytest.mark.parametrize("parameter", ["W_enc", "W_dec"])
def test_a_nan_that_only_a_fault_of_the_machine_makes_reaches_no_checkpoint(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, parameter: str
) -> None:
    """In a weight's gradient alone, where arithmetic leaves none: it is not in the loss before the next step."""
    trainer, original = make_trainer(tmp_path, save_every=2), learner.pullback

    def poisoned(*arguments: Any, **options: Any) -> Any:
        grads, recon = original(*arguments, **options)
        if trainer.step == 5:
            poison = torch.zeros(1, recon.residual.shape[1]).index_fill(1, torch.tensor(7), torch.nan)
            getattr(grads, parameter).index_add_(0, recon.top_indices[0, :1], poison)
        return grads, recon

    monkeypatch.setattr(learner, "pullback", poisoned)
    with pytest.raises(FloatingPointError, match="is not finite") as stopped:
        trainer.fit()
    monkeypatch.undo()
    saved = tmp_path / "run" / "step_4"
    assert stopped.value.__notes__[0].endswith(f"not saved; the last checkpoint is {saved}")
    make_trainer(tmp_path, resume=True, save_every=2).fit()
    assert_same_end(tmp_path, straight)


@pytest.mark.parametrize("batch", [0, 9])
def test_a_nan_in_activations_of_the_first_block_stops_before_anything_is_written(tmp_path: Path, batch: int) -> None:
    trainer = make_trainer(tmp_path)
    harvest, calls = trainer.store.source._harvest, iter(range(1000))

    def poisoned(tokens: torch.Tensor) -> Any:
        acts = dict(harvest(tokens))
        if next(calls) == batch:
            acts["layers.2"][1, 3, 7] = torch.nan
        return acts

    trainer.store.source._harvest = poisoned
    with pytest.raises(FloatingPointError, match=f"layers.2: .* in batch {batch}, sequence 1, position 3"):
        trainer.fit()
    assert not (tmp_path / "run").exists()


# What was replaced meanwhile


def replaced(save_dir: Path, what: str, **changes: Any) -> SaeTrainer:
    """`make_trainer`, but the data or the model is another of the same shape."""
    trainer = make_trainer(save_dir, resume=True, **changes)
    tokens = torch.randint(3, VOCAB_SIZE, (4 * STEPS + 4, 16), generator=torch.Generator().manual_seed(6))
    if what == "dataset":
        return SaeTrainer(trainer.cfg, tokens, trainer.store.model)
    return SaeTrainer(trainer.cfg, trainer.store.tokens._order._source, tiny_model("gpt_neox", seed=1))


@pytest.mark.parametrize("what", ["dataset", "model"])
def test_a_model_or_data_that_was_replaced_is_refused_unless_it_is_meant(
    tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stop_after(make_trainer(tmp_path), 5)
    before = sorted((tmp_path / "run").rglob("*")), (tmp_path / "run/config.json").read_bytes()
    with pytest.raises(ValueError, match=f"but the {what} of that name now holds .* --resume_changed {what}$"):
        replaced(tmp_path, what).fit()
    assert before == (sorted((tmp_path / "run").rglob("*")), (tmp_path / "run/config.json").read_bytes())
    stop_after(replaced(tmp_path, what, resume_changed=[what]), 8)
    assert f"the {what} holds something else than before, as told" in capfd.readouterr().err
    replaced(tmp_path, what).fit()  # written down: no need to tell again
    assert "something else" not in capfd.readouterr().err
    with pytest.raises(ValueError, match=f"the {what} of that name"):
        make_trainer(tmp_path, resume=True).fit()


def test_a_run_of_a_version_that_recorded_no_fingerprints_goes_on_with_one_line(
    tmp_path: Path, straight: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stop_after(make_trainer(tmp_path), 5)
    config = tmp_path / "run/config.json"
    document = json.loads(config.read_text())
    del document["derived"]["fingerprints"]
    config.write_text(json.dumps(document))
    capfd.readouterr()
    make_trainer(tmp_path, resume=True).fit()
    assert capfd.readouterr().err.count("the run does not say which model and data it had") == 1
    assert_same_end(tmp_path, straight)
    make_trainer(tmp_path, resume=True).fit()  # it says so now
    assert "does not say" not in capfd.readouterr().err


def test_a_run_of_another_version_is_told_once_as_that_and_the_record_names_both(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stop_after(make_trainer(tmp_path), 5)
    config = tmp_path / "run/config.json"
    document = json.loads(config.read_text())
    now = dict(document["versions"])
    document["versions"] |= {"sae": "0.1.0", "torch": "2.0"}
    config.write_text(json.dumps(document))
    capfd.readouterr()
    stop_after(make_trainer(tmp_path, resume=True), 2)
    told = f"the run was made with sae '0.1.0' (now {now['sae']}), torch '2.0' (now {now['torch']}):"
    assert capfd.readouterr().err.count(told) == 1
    written = json.loads(config.read_text())
    assert written["versions"] == now and written["changes"] == [{"versions": [document["versions"], now]}]
    make_trainer(tmp_path, resume=True).fit()
    assert "the run was made with" not in capfd.readouterr().err


def test_a_run_whose_compiled_passes_are_missing_when_it_goes_on_says_so_and_so_when_they_are_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stop_after(make_trainer(tmp_path), 5)
    compiler = json.loads((tmp_path / "run/config.json").read_text())["versions"]["C compiler"]
    for now, before in (("none", compiler), (compiler, "none"), (compiler, None)):
        monkeypatch.setattr(SaeTrainer, "compiler", now)
        capfd.readouterr()
        stop_after(make_trainer(tmp_path, resume=True), 2)
        said = capfd.readouterr().err
        told = f"the run was made with C compiler {short(before)} (now {now}): what comes now may differ"
        assert told in said if before else "the run was made with" not in said


def test_the_compiler_of_a_run_that_went_on_where_none_is_needed_stays_in_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stop_after(make_trainer(tmp_path), 5)
    config = tmp_path / "run/config.json"
    document = json.loads(config.read_text())
    compiler = document["versions"]["C compiler"]
    document["versions"]["torch"] = "2.0"
    config.write_text(json.dumps(document))
    for now, told in (("", "torch '2.0' (now "), ("another", f"C compiler {short(compiler)} (now another): ")):
        monkeypatch.setattr(SaeTrainer, "compiler", now)
        capfd.readouterr()
        stop_after(make_trainer(tmp_path, resume=True), 2)
        assert f"the run was made with {told}" in capfd.readouterr().err


# One writer


@pytest.mark.parametrize("changes", [{"resume": True}, {}], ids=["two resume it", "two begin it"])
def test_a_run_that_a_living_process_writes_is_left_alone_and_one_of_a_dead_process_is_not(
    tmp_path: Path, straight: Path, changes: dict[str, Any]
) -> None:
    if changes:
        stop_after(make_trainer(tmp_path), 5)
    second = make_trainer(tmp_path, **changes)  # planned before the first begins to write
    first = make_trainer(tmp_path, **changes)
    train_step, refused = first.train_step, []

    def meanwhile() -> bool:
        before = sorted((tmp_path / "run").rglob("*"))
        for attempt in (second.fit, lambda: make_trainer(tmp_path, **changes)):
            with pytest.raises(ValueError, match=f"but process {os.getpid()} on .* is at work there"):
                attempt()
            refused.append(attempt)
        assert sorted((tmp_path / "run").rglob("*")) == before
        return train_step()

    first.train_step = meanwhile  # type: ignore[method-assign]
    first.fit()
    assert refused
    assert_same_end(tmp_path, straight)
    assert not (tmp_path / "run/.lock").exists()
    (tmp_path / "run/.lock").write_text("left by one that died")
    make_trainer(tmp_path, resume=True).fit()
