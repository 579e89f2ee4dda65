"""A run's state on disk: `<run>/step_<n>/<name>/…`, complete exactly when its manifest is there.

step_<n>/manifest.json                       sizes and SHA-256 of all files; written last
step_<n>/trainer.json                        the step, the position in the data
step_<n>/<name>/cfg.json                     EleutherAI's format, which today's tools read as it is
step_<n>/<name>/sae.safetensors
step_<n>/<name>/state.safetensors            optimizer moments, dead latents, normaliser, meters
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.autoencoder import Sae

MANIFEST, TRAINER, STATE = "manifest.json", "trainer.json", "state.safetensors"


class Checkpoint(NamedTuple):
    """The state of a run between two steps."""

    saes: dict[str, Sae]
    states: dict[str, dict[str, Tensor]]
    """By name: what training needs beside the weights."""
    trainer: dict[str, Any]
    """JSON: the step, the position in the data."""


def save(run: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write `<run>/step_<step>` and return it. A crash leaves no folder of that name, or a complete one."""
    final, partial = run / f"step_{step}", run / f".step_{step}.partial"
    if (final / MANIFEST).is_file():
        return final  # A step has one state: it is there already.
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        _write(partial, checkpoint)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)  # the disk may be full
        raise OSError(f"{final} cannot be written ({error}); make room, or choose another --save_dir") from error
    partial.rename(final)
    _sync(run)
    return final


def load(folder: Path, names: list[str]) -> Checkpoint:
    """Read the checkpoint in `folder`. Raises ValueError naming the first file that is missing or damaged."""
    check(folder)
    return Checkpoint(
        {name: Sae.load_from_disk(folder / name) for name in names},
        {name: load_file(folder / name / STATE) for name in names},
        json.loads((folder / TRAINER).read_text()),
    )


def latest(run: Path) -> Path | None:
    """The complete checkpoint with the highest step in the folder of a run; None if there is none."""
    return next(iter(_by_step(run)), None)


def _by_step(run: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first."""
    steps = [path.parent for path in run.glob(f"step_*/{MANIFEST}") if path.parent.name[5:].isdigit()]
    return sorted(steps, key=lambda path: int(path.name[5:]), reverse=True)


def newest_undamaged(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that `check` passes, and what is wrong with each newer one."""
    complaints: list[str] = []
    for folder in _by_step(run):
        try:
            check(folder)
            return folder, complaints
        except ValueError as error:
            complaints.append(str(error))
    return None, complaints


def check(folder: Path) -> None:
    """Raise ValueError unless every file that the manifest lists is there, with its size and hash."""
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} must be a complete checkpoint, but has no {MANIFEST}; use an earlier one")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder / MANIFEST} is damaged; use an earlier checkpoint") from None
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or _sha256(path) != sha256:
            raise ValueError(f"{path} is missing or damaged: it is not what {MANIFEST} says; use an earlier checkpoint")


def size_on_disk(saes: dict[str, Sae]) -> int:
    """About how many bytes one checkpoint takes: the weights and two moments of each."""
    return sum(3 * parameter.nbytes for sae in saes.values() for parameter in sae.parameters())


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    for name, sae in checkpoint.saes.items():
        sae.save_to_disk(folder / name)
        state = {key: t.detach().cpu().contiguous() for key, t in checkpoint.states[name].items()}
        save_file(state, folder / name / STATE)
    (folder / TRAINER).write_text(json.dumps(checkpoint.trainer, indent=2) + "\n")
    _write_manifest(folder)


def _write_manifest(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in paths}
    for path in paths:
        _sync(path)
    (folder / MANIFEST).write_text(json.dumps({"version": 1, "files": files}, indent=2) + "\n")
    _sync(folder / MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
