"""Which index a command asks for, found without loading anything heavy: a second call opens at once.

The name of an index's folder comes from the files of the checkpoint, of the model and of the data, and from the
options. So another index is never taken for this one.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sae.config import BrowseConfig
from sae.runs.folder import RunRecord
from sae.storage.files import MANIFEST, absolute, check_writable, is_new_or_empty, newest_step, without_dots
from sae.storage.remote import place_of

from .layout import VERSION

BROWSE = "browse"
"""The folder of a run that holds its indexes and its notes."""
EXPORTS = ("neuronpedia", "circuit-tracer")
"""Formats of other tools, which are written beside the index; any other export is a folder of pages."""
_ASKED = (
    "hookpoints", "split", "text_column", "streaming", "ctx_len", "max_tokens", "exclude_tokens", "exclude_positions",
    "batch_size", "dtype", "load_in_8bit", "attn_implementation", "revision",
)  # fmt: skip
_OURS = "sae.safetensors"
_FILE = re.compile(r".*(\d|overcomplete).*\.(pt|safetensors)|.+\.pth", re.IGNORECASE)
"""Names of files that may be a dictionary each; weights whose folder is one have a name without a number."""
_SAMPLES, _SAMPLE_BYTES = 32, 4096


class BrowsePlan(NamedTuple):
    """Where the index is or will be."""

    base: Path
    """The folder of all indexes of the run, and of the notes about it."""
    key: str
    record: RunRecord | None

    @property
    def folder(self) -> Path:
        """The folder of the index."""
        return self.base / self.key

    @property
    def notes(self) -> Path:
        """The notes and bookmarks, which outlive an index."""
        return self.base / "notes.json"


def plan_browse(cfg: BrowseConfig, checkpoint: Path) -> BrowsePlan:
    """The plan for a checkpoint that is on this disk. Raises ValueError if its folder cannot be written."""
    checkpoint = newest_step(checkpoint)
    record = RunRecord.of(checkpoint)
    if cfg.out is not None:
        base = without_dots(cfg.out)
    elif record is not None:
        base = record.folder / BROWSE
    else:
        base = Path(f"{BROWSE}-{Path(os.path.abspath(cfg.checkpoint)).name}")
    options = record.options if record is not None else {}
    model, dataset = (getattr(cfg, name) or options.get(name, "") for name in ("model", "dataset"))
    of: dict[str, Any] = {
        "version": VERSION,
        "checkpoint": digest(checkpoint),
        "model": [absolute(model), digest(Path(model))],
        "dataset": [absolute(dataset), digest_of_data(dataset)],
        "options": {name: getattr(cfg, name) for name in _ASKED},
        "recorded": {name: options.get(name) for name in _ASKED if name in options},
    }
    if model_b := cfg.model_b or options.get("model_b"):
        of["model_b"] = [absolute(model_b), digest(Path(model_b)), cfg.revision_b or options.get("revision_b")]
    if _may_end_alike(checkpoint):
        of["places"] = "by their whole paths"  # earlier versions showed one of several at a hookpoint
    if cfg.activations is not None:
        of["activations"] = _digest_of_cache(cfg.activations)
    key = hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()[:12]
    if not (base / key).exists():
        check_writable("out", base)
    return BrowsePlan(base, key, record)


def _may_end_alike(checkpoint: Path) -> bool:
    """Whether two dictionaries below the checkpoint may have the same last folder, by the names of the files.

    That is the dictionary's own, or its file; of one of ours it is the folder above that of its hookpoint.
    """
    places: dict[tuple[str, ...], tuple[str, ...]] = {}
    for file in _files(checkpoint) if checkpoint.is_dir() else ():
        parts = file.relative_to(checkpoint).parts
        place = parts if _FILE.fullmatch(file.name) else parts[:-1]
        end = place[-2:] if (file.parent / _OURS).is_file() else place[-1:]
        if places.setdefault(end, place) != place:
            return True
    return False


def _digest_of_cache(name: str) -> str:
    """Name that tells a cache of activations from others."""
    place = place_of(name)
    if isinstance(place, Path):
        return digest(place / MANIFEST)
    return hashlib.sha256(place.read(MANIFEST, max_bytes=2**26)).hexdigest()


def digest_of_data(name: str) -> str:
    """`digest` of what a data set's name leads to: a file, a folder, one with a configuration, or a glob's files."""
    name = os.path.expanduser(name)
    if os.path.exists(name):
        return digest(Path(name))
    found = [digest(Path(path)) for path in sorted(glob.glob(name, recursive=True)) or [name.partition(":")[0]]]
    return hashlib.sha256("".join(found).encode()).hexdigest() if any(found) else ""


def digest(path: Path) -> str:
    """Name that tells a file, or a folder's files, from others: by names, sizes and samples; empty if nothing is there.

    It takes milliseconds for any size. A file that was written anew with other numbers differs in all samples.
    """
    if not path.exists():
        return ""
    found = hashlib.sha256()
    for file in [path] if path.is_file() else _files(path):
        name = "" if file == path else file.relative_to(path).as_posix()
        found.update(f"{name}:{file.stat().st_size};".encode())
        for content in _samples(file):
            found.update(content)
    return found.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((BROWSE, ".")))
        yield from (Path(parent, name) for name in sorted(names) if Path(parent, name).is_file())


def _samples(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        for place in range(_SAMPLES):
            opened.seek(size * place // _SAMPLES)
            yield opened.read(_SAMPLE_BYTES)


def export_folder(plan: BrowsePlan, what: str) -> Path:
    """The folder of an export. Raises ValueError unless it is new or empty, and can be written."""
    folder = plan.base / what if what in EXPORTS else without_dots(what)
    check_writable("export", folder)
    if not is_new_or_empty(folder):
        raise ValueError(f"export must be a new or empty folder, but {folder} holds something; choose another --export")
    return folder


def other_indexes(plan: BrowsePlan) -> list[Path]:
    """The folders of indexes beside this one: of another checkpoint, other data or other options."""
    if not plan.base.is_dir():
        return []
    return sorted(path for path in plan.base.iterdir() if (path / "manifest.json").is_file() and path.name != plan.key)


def about(plan: BrowsePlan, cfg: BrowseConfig, text: Any, versions: dict[str, str], command: str) -> dict[str, Any]:
    """What an index says of itself, for people."""
    return {
        "checkpoint": cfg.checkpoint, "model": text.model, "dataset": text.dataset, "versions": versions,
        "command": command,
    }  # fmt: skip
