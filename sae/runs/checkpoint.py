"""A run's state on disk: `<run>/step_<n>/<name>/…`, complete exactly when its manifest is there.

step_<n>/manifest.json                       sizes and SHA-256 of all files; written last
step_<n>/trainer.json                        the step, the position in the data, the held-out FVU if it was measured
step_<n>/config.json                         a copy of the run's, if it has one
step_<n>/<name>/cfg.json                     EleutherAI's format, which today's tools read as it is
step_<n>/<name>/sae.safetensors
step_<n>/<name>/state.safetensors            optimizer moments, dead latents, normaliser, meters
best.json                                    names the checkpoint with the least held-out FVU

A checkpoint is written as `.step_<n>.partial` and renamed; one that is removed is renamed first. A folder of that name
is what a crash has left, and the next checkpoint removes it.
"""

import json
import math
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.dictionary.autoencoder import Sae
from sae.formats.files import read_tensors, shapes_in, write_tensors
from sae.formats.find import BEST
from sae.storage.files import MANIFEST, is_inside, link_that_leaves, read_json, sha256_of, steps_of, sync, write_json

TRAINER, STATE, CONFIG = "trainer.json", "state.safetensors", "config.json"
_REPLACED = ".replaced"
"""What the name of a checkpoint ends in while its newer state takes its place."""
_MAX_JSON_BYTES = 2**26
"""A manifest has about 400 bytes a hookpoint; the position in a stream holds tokens that wait."""


class Checkpoint(NamedTuple):
    """The state of a run between two steps."""

    saes: dict[str, Sae]
    states: dict[str, dict[str, Tensor]]
    """State of training beside the weights, by name."""
    trainer: dict[str, Any]
    """JSON: the step, the position in the data."""


# Writing


def save(run: Path, step: int, checkpoint: Checkpoint, *, anew: bool = False) -> Path:
    """Write `<run>/step_<step>` and return it. A crash leaves no folder of that name, or a complete one.

    A step has one state, and nothing is written where it is there already, unless it is to be written `anew`.
    Raises OSError in one line if the disk is full, FloatingPointError if a tensor is not finite; both leave nothing.
    """
    final = run / f"step_{step}"
    if not anew and is_undamaged(final):
        return final
    partial = begin(run, step)
    try:
        write_part(partial, checkpoint)
        return finish(partial, checkpoint.trainer)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)  # the disk may be full
        raise OSError(f"{final} cannot be written ({error}); make room, or choose another --save_dir") from error
    except FloatingPointError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def begin(run: Path, step: int) -> Path:
    """An empty folder for the parts of a checkpoint; what a crash has left of others is removed."""
    for left in run.glob(".step_*.partial"):
        _remove(left)
    final = run / f"step_{step}"
    if final.exists() and not is_undamaged(final):
        _remove(final)
    partial = run / f".step_{step}.partial"
    partial.mkdir(parents=True)
    return partial


def write_part(partial: Path, checkpoint: Checkpoint) -> None:
    """Write these autoencoders and their states; several processes may each write theirs into the same folder."""
    for name, sae in checkpoint.saes.items():
        state = {key: t.detach().cpu().contiguous() for key, t in checkpoint.states[name].items()}
        _check_finite(name, sae.state_dict(), state)
        sae.save_to_disk(partial / name)
        write_tensors(partial / name / STATE, state)


def finish(partial: Path, trainer: dict[str, Any]) -> Path:
    """Make a complete checkpoint of the folder, once all parts are written; returns where it is then.

    It holds the run's configuration too, so that a copy of it alone still says what was held out.
    """
    (partial / TRAINER).write_text(json.dumps(trainer, indent=2) + "\n")
    if (config := partial.parent / CONFIG).is_file():
        shutil.copyfile(config, partial / CONFIG)
    _write_manifest(partial)
    final = partial.with_name(partial.name[1:].removesuffix(".partial"))
    replaced = final.with_name(f".{final.name}{_REPLACED}")
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def put_back(run: Path) -> None:
    """Give a checkpoint that was being replaced when a process died its name again."""
    for replaced in run.glob(f".step_*{_REPLACED}"):
        final = run / replaced.name[1:].removesuffix(_REPLACED)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(final)


def _check_finite(name: str, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    # The square of a gradient may overflow where training still goes on.
    for tensors, is_good in ((weights, math.isfinite), (state, lambda end: not math.isnan(end))):
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and not all(is_good(end.item()) for end in tensor.aminmax()):
                raise FloatingPointError(f"{name}: {key} is not finite, and such a checkpoint is never written")


def _write_manifest(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in paths}
    for path in paths:
        sync(path)
    (folder / MANIFEST).write_text(json.dumps({"version": 1, "files": files}, indent=2) + "\n")
    sync(folder / MANIFEST)
    for directory in [path for path in folder.rglob("*") if path.is_dir()] + [folder]:
        sync(directory)


def size_on_disk(saes: dict[str, Sae]) -> int:
    """About how many bytes one checkpoint takes: the weights and two moments of each."""
    return sum(3 * parameter.nbytes for sae in saes.values() for parameter in sae.parameters())


# Reading


def load(folder: Path, like: Checkpoint) -> Checkpoint:
    """Read the checkpoint in `folder`: the autoencoders of `like`, of its shapes and types.

    Raises ValueError naming the first file that is missing, damaged or of another run, before memory is taken for it.
    """
    check(folder, like.saes)
    saes = {name: _read_sae(folder / name, sae) for name, sae in like.saes.items()}
    states = {name: _read_state(folder, name, tensors) for name, tensors in like.states.items()}
    return Checkpoint(saes, states, read_json(folder / TRAINER, max_bytes=_MAX_JSON_BYTES))


def _read_sae(folder: Path, like: Sae) -> Sae:
    sae = Sae.load_from_disk(folder)
    if (sae.d_in, sae.num_latents, sae.cfg.k) != (like.d_in, like.num_latents, like.cfg.k):
        raise ValueError(
            f"{folder} must have d_in {like.d_in}, num_latents {like.num_latents} and k {like.cfg.k}, as this run has, "
            f"got {sae.d_in}, {sae.num_latents} and {sae.cfg.k}; resume with the run's own options"
        )
    return sae


def _read_state(folder: Path, name: str, like: dict[str, Tensor]) -> dict[str, Tensor]:
    path = folder / name / STATE
    if missing := sorted(set(like) - set(shapes_in(path))):
        raise ValueError(
            f"{path} must hold {missing[0]}, which this version of sae needs to go on, and does not; resume with "
            f"the version that wrote it, or train the dictionaries further in a new run: --finetune {folder}"
        )
    state = read_tensors(path, {key: list(tensor.shape) for key, tensor in like.items()})
    for key, tensor in like.items():
        # Which of them hold the first moments follows from the processor, and from the version.
        if not {state[key].dtype, tensor.dtype} <= {torch.float32, torch.bfloat16} and state[key].dtype != tensor.dtype:
            raise ValueError(f"{path}: {key} must be {tensor.dtype}, got {state[key].dtype}; use an earlier checkpoint")
    return state | {key: state[key].to(tensor.dtype) for key, tensor in like.items()}


@contextmanager
def understood(folder: Path) -> Iterator[None]:
    """An error of any kind about a trainer.json that its reader did not expect becomes a ValueError of one line."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:80]
        raise ValueError(
            f"{folder / TRAINER} must hold a place in this run's data, but does not ({reason}); "
            "use an earlier checkpoint"
        ) from None


def check(folder: Path, names: Container[str] | None = None) -> None:
    """Raise ValueError unless every file that the manifest lists is there, with its size and hash, and no link out.

    Hashes are those of the autoencoders `names` (None: all) and of the trainer: what one of several processes reads.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} must be a complete checkpoint, but has no {MANIFEST}; use an earlier one")
    try:
        manifest = read_json(folder / MANIFEST, max_bytes=_MAX_JSON_BYTES)
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder / MANIFEST} is damaged; use an earlier checkpoint") from None
    if link := link_that_leaves(folder):
        raise ValueError(f"{link} leads out of the checkpoint; put the file itself there")
    for name, (size, sha256) in files.items():
        if not is_inside(name):
            raise ValueError(
                f"{folder / MANIFEST} names a file that cannot be in the checkpoint; use an earlier checkpoint"
            )
        path = folder / name
        is_read = names is None or "/" not in name or name.rpartition("/")[0] in names
        if not path.is_file() or path.stat().st_size != size or (is_read and sha256_of(path) != sha256):
            raise ValueError(f"{path} is missing or damaged: it is not what {MANIFEST} says; use an earlier checkpoint")


def is_undamaged(folder: Path) -> bool:
    """Whether there is a checkpoint that `check` passes."""
    try:
        check(folder)
    except ValueError:
        return False
    return True


# The checkpoints of a run


def latest(run: Path) -> Path | None:
    """The complete checkpoint with the highest step in the folder of a run; None if there is none."""
    return next(iter(_by_step(run)), None)


def _by_step(run: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first."""
    return [path for path in steps_of(run) if (path / MANIFEST).exists()]


def newest_undamaged(run: Path, *, checked: Path | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that `check` passes, or has (`checked`), and what is wrong with each newer one."""
    complaints: list[str] = []
    for folder in _by_step(run):
        try:
            if folder != checked:
                check(folder)
            return folder, complaints
        except ValueError as error:
            complaints.append(str(error))
    return None, complaints


def set_damaged_aside(run: Path, newest: Path | None) -> None:
    """Rename the checkpoints newer than `newest` to `damaged_step_<n>`, so that nobody takes them for the newest."""
    for folder in _by_step(run):
        if folder == newest:
            return
        aside = folder.with_name(f"damaged_{folder.name}")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)


def best(run: Path) -> tuple[Path, float] | None:
    """The checkpoint with the least held-out FVU, and its mean over hookpoints; None if none was measured."""
    measured = [(fvu, folder) for folder in reversed(_by_step(run)) if (fvu := _held_out_fvu(folder)) is not None]
    fvu, folder = min(measured, default=(0.0, None), key=lambda pair: pair[0])
    return None if folder is None else (folder, fvu)


def _held_out_fvu(folder: Path) -> float | None:
    """The held-out FVU that a checkpoint records; None if it was not measured, or cannot be read."""
    try:
        values = read_json(folder / TRAINER, max_bytes=_MAX_JSON_BYTES)["held_out_fvu"].values()
        return sum(values) / len(values)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, OSError):
        return None


def rotate(run: Path, keep_last: int | None) -> None:
    """Say in best.json which checkpoint is the best, then remove all but the newest `keep_last` and that one."""
    found = best(run)
    if found is not None:
        write_json(run / BEST, {"checkpoint": found[0].name, "held_out_fvu": found[1]})
    if keep_last is not None:
        for folder in _by_step(run)[keep_last:]:
            if found is None or folder != found[0]:
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a checkpoint, or a part of one, so that a crash leaves nothing that looks like a checkpoint."""
    if folder.is_symlink():
        folder.unlink()
        return
    partial = folder.with_name(f".{folder.name.strip('.').removesuffix('.partial')}.partial")
    if partial != folder:
        if partial.exists():
            shutil.rmtree(partial)
        folder.rename(partial)
        sync(folder.parent)
    shutil.rmtree(partial)
