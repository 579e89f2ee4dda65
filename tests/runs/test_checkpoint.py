"""A checkpoint exists exactly when its manifest does, and then it is whole."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import NAMES, files_in, make_checkpoint, trained
from oracle import make_sae
from safetensors.torch import save_file
from torch import Tensor

from sae import Sae
from sae.runs import checkpoint
from sae.runs.checkpoint import MANIFEST, STATE, TRAINER, Checkpoint
from sae.training.learner import SaeLearner


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return checkpoint.save(tmp_path / "run", 3, make_checkpoint())


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def test_save_and_load_changes_nothing(tmp_path: Path) -> None:
    given = make_checkpoint()
    loaded = checkpoint.load(checkpoint.save(tmp_path / "run", 3, given), make_checkpoint())
    assert list(loaded.saes) == NAMES and loaded.trainer == given.trainer
    for name in NAMES:
        assert_same(loaded.saes[name].state_dict(), given.saes[name].state_dict())
        assert_same(loaded.states[name], given.states[name])


def test_what_a_learner_needs_survives(tmp_path: Path) -> None:
    one = make_sae(8, 16, 3, dtype=torch.float32)
    learner = trained(one)
    folder = checkpoint.save(tmp_path / "run", 3, Checkpoint({"a": one}, {"a": learner.state_dict()}, {}))
    other = trained(make_sae(8, 16, 3, dtype=torch.float32))
    loaded = checkpoint.load(folder, Checkpoint({"a": other.sae}, {"a": other.state_dict()}, {}))
    other.sae.load_state_dict(loaded.saes["a"].state_dict())
    other.load_state_dict(loaded.states["a"])
    x = torch.randn(32, 8)
    for each in (learner, other):
        each.accumulate(x)
        each.update(1e-2)
    assert_same(one.state_dict(), other.sae.state_dict())
    assert_same(learner.state_dict(), other.state_dict())
    assert learner.read_metrics() == other.read_metrics()


@pytest.mark.parametrize(("written", "read"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_moments_of_another_processor_or_version_are_read_in_the_type_of_this_one(
    tmp_path: Path, written: torch.dtype, read: torch.dtype
) -> None:
    given, like = (Checkpoint({"a": make_sae()}, {"a": {"m": torch.randn(3, 5, dtype=t)}}, {}) for t in (written, read))
    found = checkpoint.load(checkpoint.save(tmp_path / "run", 3, given), like).states["a"]["m"]
    assert found.dtype == read and torch.equal(found, given.states["a"]["m"].to(read))


def test_whole_numbers_in_place_of_others_are_refused(tmp_path: Path) -> None:
    given, like = (
        Checkpoint({"a": make_sae()}, {"a": {"m": torch.ones(3, dtype=t)}}, {}) for t in (torch.int64, torch.float32)
    )
    with pytest.raises(ValueError, match="m must be torch.float32, got torch.int64; use an earlier checkpoint"):
        checkpoint.load(checkpoint.save(tmp_path / "run", 3, given), like)


def test_the_state_of_a_version_that_kept_less_is_told_as_that(tmp_path: Path) -> None:
    given, like = (
        Checkpoint({"k4/h.1": make_sae()}, {"k4/h.1": {name: torch.ones(3) for name in names}}, {})
        for names in (["m"], ["m", "longest"])
    )
    folder = checkpoint.save(tmp_path / "run", 3, given)
    with pytest.raises(ValueError, match=rf"must hold longest, .* the version that wrote it, .* --finetune {folder}$"):
        checkpoint.load(folder, like)


def test_a_checkpoint_is_laid_out_as_promised_and_opens_as_a_folder_of_autoencoders(saved: Path) -> None:
    of_each = {f"{name}/{file}" for name in NAMES for file in ("cfg.json", "sae.safetensors", STATE)}
    assert saved.name == "step_3"
    assert set(files_in(saved)) == of_each | {MANIFEST, TRAINER}
    assert set(Sae.load_many(saved)) == set(Sae.load_many(saved.parent)) == set(NAMES)


def test_the_manifest_lists_every_other_file_and_is_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(checkpoint, "sync", lambda path: synced.append(path))
    folder = checkpoint.save(tmp_path / "run", 3, make_checkpoint())
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(listed) == set(files_in(folder)) - {MANIFEST}
    assert all(listed[name]["bytes"] == (folder / name).stat().st_size for name in listed)
    partial = folder.with_name(".step_3.partial")
    files, (manifest, *folders, last) = synced[: len(listed)], synced[len(listed) :]
    assert {path.relative_to(partial).as_posix() for path in files} == set(listed)
    assert manifest == partial / MANIFEST and last == folder.parent
    assert set(folders) == {path.parent for path in files} and len(folders) == 1 + len(NAMES)


def test_a_process_that_reads_some_of_the_autoencoders_checks_those(saved: Path) -> None:
    path = saved / "layers.10.mlp" / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    given = make_checkpoint()
    one = Checkpoint({"layers.0": given.saes["layers.0"]}, {"layers.0": given.states["layers.0"]}, {})
    assert list(checkpoint.load(saved, one).saes) == ["layers.0"]
    path.unlink()
    with pytest.raises(ValueError, match="layers.10.mlp/sae.safetensors is missing or damaged"):
        checkpoint.load(saved, one)


@pytest.mark.parametrize("name", [TRAINER, "layers.0/cfg.json", "layers.10.mlp/sae.safetensors", f"h.2.input/{STATE}"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "one bit", "longer"])
def test_a_file_that_is_damaged_is_named(saved: Path, name: str, damage: str) -> None:
    path = saved / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    broken = {"truncated": path.read_bytes()[:-1], "one bit": content, "longer": path.read_bytes() + b" "}
    path.unlink()
    if damage in broken:
        path.write_bytes(broken[damage])
    with pytest.raises(ValueError, match=f"{name} is missing or damaged: .*; use an earlier checkpoint"):
        checkpoint.load(saved, make_checkpoint())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"version": 1}', '{"files": {"trainer.json": 1}}'])
def test_a_damaged_manifest_is_named(saved: Path, content: str) -> None:
    (saved / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match="manifest.json .*; use an earlier checkpoint"):
        checkpoint.load(saved, make_checkpoint())


def test_a_folder_without_a_manifest_is_no_checkpoint(saved: Path) -> None:
    (saved / MANIFEST).unlink()
    with pytest.raises(ValueError, match="step_3 must be a complete checkpoint, but has no manifest.json"):
        checkpoint.load(saved, make_checkpoint())
    assert checkpoint.latest(saved.parent) is None


def test_a_hookpoint_that_the_checkpoint_lacks_is_named(saved: Path) -> None:
    with pytest.raises(ValueError, match="layers.7 must hold a dictionary, but there is no cfg.json"):
        checkpoint.load(saved, make_checkpoint()._replace(saes={"layers.7": make_sae(8, 16, 3)}))


def test_the_latest_is_the_highest_complete_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert checkpoint.latest(run) is None
    for step in (9, 100, 20):
        checkpoint.save(run, step, make_checkpoint())
    assert checkpoint.latest(run) == run / "step_100"
    (run / "step_100" / MANIFEST).unlink()
    shutil.copytree(run / "step_20", run / ".step_300.partial")
    shutil.copytree(run / "step_20", run / "step_old")
    (run / "step_400").mkdir()
    assert checkpoint.latest(run) == run / "step_20"


def test_a_step_that_is_written_anew_takes_the_place_of_the_first(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, newer = saved.parent, make_checkpoint()
    name = NAMES[0]
    newer.saes[name].b_dec.data += 1
    assert checkpoint.save(run, 3, newer, anew=True) == saved
    loaded = checkpoint.load(saved, make_checkpoint())
    assert torch.equal(loaded.saes[name].b_dec, newer.saes[name].b_dec)
    assert [path.name for path in run.iterdir()] == ["step_3"]

    # A process that dies between the two renames leaves neither name; the one before is put back.
    before = files_in(saved)
    rename = Path.rename

    def die(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(run, 3, make_checkpoint(), anew=True)
    monkeypatch.undo()
    assert checkpoint.latest(run) is None
    checkpoint.put_back(run)
    assert checkpoint.latest(run) == saved and files_in(saved) == before


def test_saving_a_step_twice_keeps_the_first_and_returns_it(saved: Path) -> None:
    before, times = files_in(saved), {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
    assert checkpoint.save(saved.parent, 3, make_checkpoint()) == saved
    assert files_in(saved) == before
    assert {path: path.stat().st_mtime_ns for path in saved.rglob("*")} == times


@pytest.mark.parametrize("after", range(7))
def test_a_crash_while_saving_leaves_no_step_and_the_one_before(
    saved: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """As if the power went: no clean-up of ours runs, and what lies there is in the way of nobody."""
    before, calls = files_in(saved), iter(range(100))

    class PowerCut(BaseException):
        pass

    def write(tensors: dict[str, Tensor], path: Path, about: object = None) -> None:
        if next(calls) == after:
            raise PowerCut
        save_file(tensors, path)

    monkeypatch.setattr("sae.formats.files.save_file", write)
    if after == 6:  # all tensors are written
        monkeypatch.setattr(checkpoint, "_write_manifest", lambda folder: write({}, folder))
    with pytest.raises(PowerCut):
        checkpoint.save(saved.parent, 4, make_checkpoint())
    assert not (saved.parent / "step_4").exists()
    assert files_in(saved) == before and checkpoint.latest(saved.parent) == saved
    assert list(Sae.load_many(saved.parent)) == list(Sae.load_many(saved))
    monkeypatch.undo()
    checkpoint.check(checkpoint.save(saved.parent, 4, make_checkpoint()))
    assert {path.name for path in saved.parent.iterdir()} == {"step_3", "step_4"}


def test_a_disk_that_is_full_is_told_and_the_part_is_removed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(folder: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoint, "_write_manifest", fill)
    with pytest.raises(OSError, match="step_4 cannot be written .*No space left on device.*make room"):
        checkpoint.save(saved.parent, 4, make_checkpoint())
    assert [path.name for path in saved.parent.iterdir()] == ["step_3"]


def test_size_on_disk_is_about_what_a_checkpoint_takes(tmp_path: Path) -> None:
    one = make_sae(64, 512, 3, dtype=torch.float32)
    learner = SaeLearner(one, tokens_per_step=1, auxk_alpha=0, dead_feature_threshold=1, compute_dtype=torch.float32)
    folder = checkpoint.save(tmp_path / "run", 1, Checkpoint({"a": one}, {"a": learner.state_dict()}, {}))
    taken = sum(len(content) for content in files_in(folder).values())
    assert checkpoint.size_on_disk({"a": one}) == pytest.approx(taken, rel=0.05)
