"""Checkpoints are written beside training, the old ones go, the best stays, and nothing is lost in between."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import files_in, make_checkpoint

from sae import Sae
from sae.config import TrainConfig
from sae.formats.find import BEST
from sae.runs import checkpoint
from sae.runs.background_save import Saver
from sae.runs.checkpoint import MANIFEST, Checkpoint
from sae.runs.folder import RunFolder, checkpoints_to_keep


def state_of(step: int, fvu: float | None = None) -> Checkpoint:
    """A checkpoint whose weights are those of its step."""
    state = make_checkpoint()
    for sae in state.saes.values():
        sae.b_dec.data.fill_(step)
    measured = {} if fvu is None else {"held_out_fvu": dict.fromkeys(state.saes, fvu)}
    return state._replace(trainer={"step": step} | measured)


def steps(run: Path) -> set[int]:
    return {int(path.name[5:]) for path in run.glob("step_*") if checkpoint.is_undamaged(path)}


class Held:
    """Stands in for a function; each call waits until it is let go."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.begun, self.go, self._function = threading.Event(), threading.Event(), function

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.begun.set()
        assert self.go.wait(20)
        return self._function(*arguments, **options)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """No manifest is written before it is let go."""
    held = Held(checkpoint._write_manifest)
    monkeypatch.setattr(checkpoint, "_write_manifest", held)
    return held


# Beside training


def test_what_is_written_is_the_state_at_the_call_whatever_training_does_meanwhile(tmp_path: Path, held: Held) -> None:
    saver, state = Saver(tmp_path, keep_last=None), state_of(1)
    expected = files_in(checkpoint.save(tmp_path / "other", 1, state)) if held.go.set() is None else {}
    held.go.clear()
    held.begun.clear()
    folder = saver.start(state)
    assert held.begun.wait(20) and not folder.exists()
    for sae in state.saes.values():
        sae.W_dec.data.fill_(7)
    for tensors in state.states.values():
        for tensor in tensors.values():
            tensor.fill_(7)
    state.trainer["step"] = 7
    held.go.set()
    saver.wait()
    assert files_in(folder) == expected


def test_the_next_save_waits_for_the_one_before_and_takes_no_second_copy(tmp_path: Path, held: Held) -> None:
    saver = Saver(tmp_path, keep_last=None)
    saver.start(state_of(1))
    assert held.begun.wait(20)
    memory = {name: tensor.data_ptr() for name, tensor in saver._host.items()}
    second = threading.Thread(target=saver.start, args=(state_of(2),))
    second.start()
    second.join(0.2)
    assert second.is_alive() and steps(tmp_path) == set()
    held.go.set()
    second.join()
    saver.wait()
    assert steps(tmp_path) == {1, 2}
    assert {name: tensor.data_ptr() for name, tensor in saver._host.items()} == memory
    assert all(torch.all(sae.b_dec == step) for step in (1, 2) for sae in load(tmp_path / f"step_{step}"))


def test_what_is_waited_for_is_written_without_a_copy(tmp_path: Path) -> None:
    saver, state = Saver(tmp_path, keep_last=None), state_of(1)
    folder = saver.save(state)
    assert saver._host == {} and saver._thread is None
    assert files_in(folder) == files_in(checkpoint.save(tmp_path / "other", 1, state))


def test_a_save_that_is_waited_for_lets_the_one_before_end_first(tmp_path: Path, held: Held) -> None:
    saver = Saver(tmp_path, keep_last=None)
    saver.start(state_of(1))
    assert held.begun.wait(20)
    last = threading.Thread(target=saver.save, args=(state_of(2),))
    last.start()
    last.join(0.2)
    assert last.is_alive() and steps(tmp_path) == set()
    held.go.set()
    last.join()
    assert steps(tmp_path) == {1, 2}


def load(folder: Path) -> list[Sae]:
    return list(Sae.load_many(folder).values())


def test_an_error_of_the_writing_is_raised_by_the_next_check_once_and_a_later_save_may_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(folder: Path) -> None:
        raise OSError(28, os.strerror(28))

    saver = Saver(tmp_path, keep_last=1)
    saver.start(state_of(1))
    saver.wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_manifest", fill)
        saver.start(state_of(2))
        assert saver._thread is not None
        saver._thread.join()
        with pytest.raises(OSError, match="step_2 cannot be written .*No space left on device.*make room"):
            saver.check()
        saver.check()
        assert {path.name for path in tmp_path.iterdir()} == {"step_1"}
    saver.start(state_of(2))
    saver.wait()
    assert steps(tmp_path) == {2}


@pytest.mark.parametrize("key", ["weights", "state"])
def test_what_is_not_finite_is_never_written_and_named(tmp_path: Path, key: str) -> None:
    saver, state = Saver(tmp_path, keep_last=1), state_of(1)
    saver.start(state_of(0))
    wrong = state.saes["layers.10.mlp"].W_dec.data if key == "weights" else state.states["layers.10.mlp"]["mean"]
    wrong[1] = torch.nan
    saver.start(state)
    with pytest.raises(FloatingPointError, match=r"layers.10.mlp: (W_dec|mean) is not finite"):
        saver.wait()
    assert {path.name for path in tmp_path.iterdir()} == {"step_0"}


def test_saving_the_same_step_again_copies_nothing(tmp_path: Path) -> None:
    saver, state = Saver(tmp_path, keep_last=1), state_of(3)
    assert saver.start(state) == tmp_path / "step_3"
    saver.wait()
    before = files_in(tmp_path)
    assert saver.start(state) == tmp_path / "step_3" and saver._thread is None
    assert files_in(tmp_path) == before


# Rotation


def save_all(run: Path, fvus: dict[int, float | None], keep_last: int | None) -> None:
    saver = Saver(run, keep_last=keep_last)
    for step, fvu in fvus.items():
        saver.start(state_of(step, fvu))
    saver.wait()


@pytest.mark.parametrize(("keep_last", "left"), [(None, {2, 9, 10, 30, 100}), (3, {10, 30, 100}), (1, {100})])
def test_the_newest_stay_and_all_stay_without_a_limit(tmp_path: Path, keep_last: int | None, left: set[int]) -> None:
    save_all(tmp_path, dict.fromkeys((2, 9, 10, 30, 100)), keep_last)
    assert {path.name for path in tmp_path.iterdir()} == {f"step_{step}" for step in left}
    assert steps(tmp_path) == left


def test_the_best_stays_as_well_is_named_and_loads_by_its_name(tmp_path: Path) -> None:
    save_all(tmp_path, {1: 0.5, 2: 0.2, 3: 0.3, 4: 0.25, 5: None}, keep_last=2)
    assert steps(tmp_path) == {2, 4, 5}
    assert json.loads((tmp_path / BEST).read_text()) == {"checkpoint": "step_2", "held_out_fvu": pytest.approx(0.2)}
    assert checkpoint.best(tmp_path) == (tmp_path / "step_2", pytest.approx(0.2))
    assert all(torch.all(sae.b_dec == 2) for sae in Sae.load_many(tmp_path / "best").values())
    assert all(torch.all(sae.b_dec == 5) for sae in Sae.load_many(tmp_path).values())


def test_of_two_that_are_equally_good_the_first_is_the_best(tmp_path: Path) -> None:
    save_all(tmp_path, {1: 0.3, 2: 0.2, 3: 0.2}, keep_last=None)
    assert checkpoint.best(tmp_path) == (tmp_path / "step_2", pytest.approx(0.2))


def test_the_best_survives_a_copy_of_the_run_and_a_new_process(tmp_path: Path) -> None:
    import shutil

    save_all(tmp_path / "run", {1: 0.1, 2: 0.2}, keep_last=1)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    shutil.rmtree(tmp_path / "run")
    save_all(tmp_path / "copy", {3: 0.3, 4: 0.4}, keep_last=1)
    assert steps(tmp_path / "copy") == {1, 4}
    assert all(torch.all(sae.b_dec == 1) for sae in Sae.load_many(tmp_path / "copy" / "best").values())


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "step_1/layers.0", "step_", "", 3, None])
def test_a_best_that_names_no_checkpoint_of_the_run_is_refused(tmp_path: Path, name: object) -> None:
    save_all(tmp_path, {1: 0.1}, keep_last=1)
    (tmp_path / BEST).write_text(json.dumps({"checkpoint": name}))
    with pytest.raises(ValueError, match="best.json must name a checkpoint"):
        Sae.load_many(tmp_path / "best")


@pytest.mark.parametrize("crash_at", range(8))
def test_a_crash_while_removing_leaves_only_whole_checkpoints_and_the_next_save_tidies_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """The power goes at the rename, or when some of the files are gone."""

    class PowerCut(BaseException):
        pass

    calls = iter(range(100))

    def cut(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == crash_at:
                raise PowerCut
            return function(*arguments, **options)

        return call

    save_all(tmp_path, dict.fromkeys((1, 2, 3)), keep_last=None)
    with monkeypatch.context() as patch:
        for module, name in ((os, "unlink"), (os, "rmdir"), (Path, "rename")):
            patch.setattr(module, name, cut(getattr(module, name)))
        with pytest.raises(PowerCut):
            checkpoint.rotate(tmp_path, 1)
    complete = {path.parent for path in tmp_path.glob(f"step_*/{MANIFEST}")}
    assert tmp_path / "step_3" in complete
    for folder in complete:
        checkpoint.check(folder)
    save_all(tmp_path, {4: None}, keep_last=1)
    assert {path.name for path in tmp_path.iterdir()} == {"step_4"}


def test_a_damaged_checkpoint_of_this_step_is_replaced(tmp_path: Path) -> None:
    save_all(tmp_path, {1: None}, keep_last=None)
    (tmp_path / "step_1" / "layers.0" / "sae.safetensors").write_bytes(b"short")
    assert steps(tmp_path) == set()
    save_all(tmp_path, {1: None}, keep_last=None)
    assert steps(tmp_path) == {1} and {path.name for path in tmp_path.iterdir()} == {"step_1"}


# The default


@pytest.mark.parametrize(
    ("planned", "free", "kept"), [(1, 100, None), (5, 100, None), (6, 100, 3), (1000, 100, 3), (0, 0, None)]
)
def test_all_checkpoints_stay_by_default_if_they_fit_into_half_of_the_disk(
    planned: int, free: int, kept: int | None
) -> None:
    assert checkpoints_to_keep(planned, 10, free) == kept


def test_a_run_behind_two_dots_lies_where_they_lead(tmp_path: Path) -> None:
    cfg = TrainConfig(save_dir=f"{tmp_path}/new/../runs", run_name="run")
    planned = RunFolder.plan(cfg)
    assert planned.path == tmp_path / "runs/run"
    assert planned.sized(cfg, checkpoint_bytes=1, total_steps=1).path == tmp_path / "runs/run"


def test_a_save_dir_that_cannot_be_written_is_refused_by_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="save_dir must be a folder, but .*/file is a file; choose another --save_dir"):
        RunFolder.plan(TrainConfig(save_dir=str(tmp_path / "file/runs"), run_name="run"))

    def refuse(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # as root a folder's mode says nothing
    with pytest.raises(ValueError, match=r"save_dir must be .* written, but .* cannot \(Read-only file system\)"):
        RunFolder.plan(TrainConfig(save_dir=str(tmp_path / "runs"), run_name="run"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_resumed_run_keeps_what_it_had_decided_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"save_dir": str(tmp_path), "run_name": "run", "save_every": 10}
    free = {"bytes": 10**12}
    monkeypatch.setattr("sae.runs.folder.free_bytes", lambda folder: free["bytes"])

    def planned(**changed: Any) -> RunFolder:
        cfg = TrainConfig(**options, **changed)
        return RunFolder.plan(cfg).sized(cfg, checkpoint_bytes=100, total_steps=1000)

    first = planned()
    first.claim(TrainConfig(**options), {})
    free["bytes"] = 1000
    assert (first.keep_last, planned(resume=True).keep_last) == (None, None)
    assert planned(resume=True, keep_last=2).keep_last == 2
    (tmp_path / "run" / "config.json").unlink()
    assert planned().keep_last == 3
