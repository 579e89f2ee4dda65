"""No file that a stranger gives leads out of its folder, or takes memory for what it only claims."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from oracle import make_sae

from sae import Sae, TrainConfig
from sae.runs import checkpoint
from sae.runs.checkpoint import MANIFEST
from sae.runs.folder import RunFolder, RunRecord
from sae.storage.files import is_inside, read_json, sha256_of, write_json


@pytest.fixture
def one_sae(tmp_path: Path) -> Path:
    make_sae(8, 16, 3, dtype=torch.float32).save_to_disk(tmp_path / "sae")
    return tmp_path / "sae"


@pytest.mark.parametrize("name", ["cfg.json", "sae.safetensors"])
def test_a_link_out_of_an_autoencoder_is_refused_and_one_inside_is_not(one_sae: Path, name: str) -> None:
    (one_sae / name).rename(one_sae.parent / name)
    (one_sae / name).symlink_to(one_sae.parent / name)
    with pytest.raises(ValueError, match=f"{name} leads out of its folder; put the file itself there"):
        Sae.load_from_disk(one_sae)
    (one_sae / name).unlink()
    (one_sae.parent / name).rename(one_sae / "elsewhere")
    (one_sae / name).symlink_to("elsewhere")
    assert Sae.load_from_disk(one_sae).d_in == 8


def test_the_hubs_cache_keeps_files_in_blobs_and_loads(one_sae: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    folder = repository / "snapshots" / "0123" / "layers.0"
    folder.mkdir(parents=True)
    for path in one_sae.iterdir():
        path.rename(repository / "blobs" / path.name)
        (folder / path.name).symlink_to(Path("../../../blobs") / path.name)
    assert Sae.load_from_disk(folder).d_in == 8


@pytest.mark.parametrize(
    "name",
    ["../victim", "/etc/passwd", "layers.0/../../victim", "a\\..\\b", "", "a\0b", "..", "a\nb", "\x1b[2J", "x/" * 300],
)
def test_a_manifest_that_names_a_file_outside_is_refused(tmp_path: Path, name: str) -> None:
    folder = checkpoint.save(tmp_path / "run", 3, make_checkpoint())
    (tmp_path / "run" / "victim").write_text("mine")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 4, "sha256": sha256_of(tmp_path / "run" / "victim")}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert not is_inside(name)
    with pytest.raises(ValueError, match="manifest.json names a file that cannot be in the checkpoint"):
        checkpoint.check(folder)


@pytest.mark.parametrize(
    "place", ["metrics.jsonl", "step_3", "step_3/layers.0", "step_3/layers.0/sae.safetensors", "wandb"]
)
def test_a_run_with_a_link_out_of_its_folder_is_not_resumed(tmp_path: Path, place: str) -> None:
    options = {"save_dir": str(tmp_path), "run_name": "run"}
    RunFolder.plan(TrainConfig(**options)).claim(TrainConfig(**options), {})
    checkpoint.save(tmp_path / "run", 3, make_checkpoint())
    path, victim = tmp_path / "run" / place, tmp_path / "victim"
    if path.exists():
        path.rename(victim)
    else:
        victim.write_text("mine")
    path.symlink_to(victim)
    with pytest.raises(ValueError, match="resume must name a run that lies in its folder, but .* leads out of it"):
        RunFolder.plan(TrainConfig(**options, resume=True))


def test_links_to_logs_that_weights_and_biases_leaves_do_not_stand_in_the_way_of_resuming(tmp_path: Path) -> None:
    options = {"save_dir": str(tmp_path), "run_name": "run"}
    RunFolder.plan(TrainConfig(**options)).claim(TrainConfig(**options), {})
    logs = tmp_path / "run" / "wandb" / "offline-run-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "cache" / "core.log")
    assert RunFolder.plan(TrainConfig(**options, resume=True)).path == tmp_path / "run"
    (tmp_path / "run" / "step_3" / "wandb").mkdir(parents=True)
    (tmp_path / "run" / "step_3" / "wandb" / "link").symlink_to(tmp_path / "cache")
    with pytest.raises(ValueError, match="step_3/wandb/link leads out of it"):
        RunFolder.plan(TrainConfig(**options, resume=True))


def test_a_link_in_the_way_of_a_file_is_replaced_and_what_it_leads_to_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    for name in ("config.json", ".config.json.partial"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    write_json(tmp_path / "config.json", {"a": 1})
    assert (tmp_path / "victim").read_text() == "mine"
    assert read_json(tmp_path / "config.json") == {"a": 1} and not (tmp_path / "config.json").is_symlink()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 10**6, "is not"),
        (b'{"a": ' * 10**5, "is not"),
        (b'{"a": 1, "a": 2}', "stands there twice"),
        (b'{"a": NaN}', "a number that is NaN"),
        (b'{"a": -Infinity}', "a number that is -Infinity"),
        (b'{"a": ' + b"9" * 10**5 + b"}", "a number of 100000 digits"),
        (b"\xff\xfe{}", "is not"),
        (b"[]", "hold a JSON object, got list"),
        (b"", "is not"),
    ],
)
def test_json_that_no_program_of_ours_writes_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"file.json must .*{reason}"):
        read_json(tmp_path / "file.json")


def test_a_huge_file_is_refused_by_its_size_unread(one_sae: Path) -> None:
    for name in ("cfg.json", "sae.safetensors"):
        before = (one_sae / name).read_bytes()
        with (one_sae / name).open("r+b") as file:
            file.write((2**39).to_bytes(8, "little"))
            os.truncate(file.fileno(), 2**40)
        begun = time.monotonic()
        with pytest.raises(ValueError, match=f"{name} must be a (small JSON|safetensors) file"):
            Sae.load_from_disk(one_sae)
        assert time.monotonic() - begun < 2
        (one_sae / name).write_bytes(before)


@pytest.mark.parametrize("hookpoint", ["../up", "/etc", "a/../../b", "a\\b", ""])
def test_a_hookpoint_of_the_hub_stays_in_its_repository(hookpoint: str) -> None:
    with pytest.raises(ValueError, match="hookpoint must be a module path"):
        Sae.load_from_hub("owner/name", hookpoint)


RECORD: dict[str, Any] = {"options": {"model": "m", "dataset": "d", "seed": 1}, "derived": {"held_out_sequences": 4}}


def test_the_record_of_a_run_is_that_of_the_run_around_a_checkpoint_and_no_other(tmp_path: Path) -> None:
    one = tmp_path / "run" / "step_3" / "k16" / "layers.0"
    one.mkdir(parents=True)
    write_json(tmp_path / "run" / "config.json", RECORD)
    for place in (one, one.parent, one.parent.parent, tmp_path / "run"):
        record = RunRecord.of(place)
        assert record is not None and record.folder == tmp_path / "run"
    write_json(tmp_path / "config.json", RECORD)
    foreign = tmp_path / "downloads" / "layers.0"
    foreign.mkdir(parents=True)
    for place in (foreign, foreign.parent, one / "deeper" / "still"):
        assert RunRecord.of(place) is None


@pytest.mark.parametrize("content", ["[", "[]", '{"a": 1, "a": 2}', '{"options": {}}', " " * 2**20 + "{}"])
def test_a_config_json_of_another_tool_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert RunRecord.of(tmp_path) is None


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ("derived", "held_out_sequences", True), ("derived", "held_out_sequences", 2**62), ("derived", "ctx_len", 0),
        ("derived", "read_with", []), ("derived", "data_seed", "7"), ("options", "dataset", 7),
        ("options", "model", "a\nb"), ("options", "streaming", "no"), ("options", "exclude_tokens", [None]),
        ("options", "exclude_positions", 3), ("options", "revision", {}),
    ],
)  # fmt: skip
def test_a_record_of_other_types_than_a_run_writes_is_refused(
    tmp_path: Path, where: str, name: str, value: Any
) -> None:
    write_json(tmp_path / "config.json", RECORD | {where: RECORD[where] | {name: value}})
    with pytest.raises(ValueError, match=f"config.json: {name} must be .*, got .*; is it the file of the run"):
        RunRecord.of(tmp_path)
