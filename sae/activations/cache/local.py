"""The folder of a cache while it is written: each row is put where one process alone would have put it.

What `progress.json` says is on disk; what lies behind it is cut off when the writing continues.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from sae.activations.cache.format import (
    BATCHES,
    FINISHED,
    HELD_OUT,
    KEPT,
    PROGRESS,
    TOKENS,
    TRAIN,
    CacheHeader,
    CacheManifest,
    manifest_to_json,
    row_bytes,
    rows_path,
)
from sae.activations.cache.groups import Group, shards_with_rows
from sae.activations.cache.order import permuted
from sae.activations.workers import Workers
from sae.storage.files import MANIFEST, read_json, sha256_of, write_atomically
from sae.storage.lock import remove_left_lock

_MAX_PROGRESS_BYTES = _MAX_FINISHED_BYTES = 2**26
"""A position in a stream holds the tokens that wait; finished.txt has a line for every shard."""
_IS_SHA256 = re.compile("[0-9a-f]{64}").fullmatch
DEALT = ".dealt"
"""Ending of a shard whose rows are not yet permuted."""


class FolderFiles:
    """Files of a cache in a folder that all processes see."""

    def __init__(self, folder: Path, header: CacheHeader, workers: Workers) -> None:
        self.folder, self._header, self._workers = folder, header, workers
        self._widths = {name: row_bytes(d_in, header.dtype) for name, d_in in header.hookpoints.items()}

    # Beginning and continuing

    def progress(self) -> dict[str, Any] | None:
        """The progress that an earlier call has left; None if there was none."""
        if not (self.folder / PROGRESS).exists():
            return None
        return read_json(self.folder / PROGRESS, max_bytes=_MAX_PROGRESS_BYTES)

    def save_progress(self, state: dict[str, Any]) -> None:
        """Say how far the cache is. The main process calls it, once everything up to there is on the disk."""
        write_atomically(self.folder / PROGRESS, json.dumps(state).encode())

    def cut_off(self, saved: dict[str, Any]) -> None:
        """Take away what was written after the last progress."""
        for name, size in self._sizes(saved).items():
            _cut_off(self.folder / TRAIN / name, size)
        if saved["place"] is None:
            shutil.rmtree(self.folder / HELD_OUT, ignore_errors=True)
        for hookpoint, width in self._widths.items():
            for shard, tokens in enumerate(saved["lengths"][TRAIN]):
                _cut_off(self._path(TRAIN, hookpoint, shard), tokens * width)

    def _sizes(self, saved: dict[str, Any]) -> dict[str, int]:
        """Bytes of the files that say of the section `train` which tokens it holds, by their names."""
        sequences, batches = saved["sequences"], saved.get("batches")
        if batches is None:  # an older version began the cache
            return {} if self._header.shuffled else {KEPT: 4 * sequences}
        of_batches = {BATCHES: 4 * batches} if self._header.shuffled else {}
        return of_batches | {KEPT: 4 * sequences, TOKENS: 4 * sequences * self._header.ctx_len}

    def _path(self, section: str, hookpoint: str, shard: int) -> Path:
        """Where the first pass writes."""
        dealt = DEALT if self._header.shuffled and section == TRAIN else ""
        return self.folder / (rows_path(section, hookpoint, shard) + dealt)

    # The first pass

    def write(self, group: Group, shards: Int64[np.ndarray, " tokens"], state: dict[str, Any]) -> None:
        """Put this process's rows of a group behind the rows of which `state` tells, each into its shard.

        `shards` has the shard of every token of the group: the rows of other processes lie between.
        """
        own, lengths = group.own_tokens, state["lengths"][group.section]
        before = np.bincount(shards[: own.start], minlength=len(lengths))
        counts = np.bincount(shards[own], minlength=len(lengths)).tolist()
        order = np.argsort(shards[own], kind="stable")
        for hookpoint, width in self._widths.items() if group.own else ():
            for shard, part in enumerate(group.rows(hookpoint)[order].split(counts)):
                if len(part):
                    start = (lengths[shard] + int(before[shard])) * width
                    _write_at(self._path(group.section, hookpoint, shard), part, start)
        if self._workers.rank == 0:
            self._write_text(group, state)
        os.sync()

    def _write_text(self, group: Group, state: dict[str, Any]) -> None:
        """Write which tokens the group holds."""
        sizes = self._sizes(state)
        if group.section == HELD_OUT:
            sequences = state["held_out_sequences"]
            sizes = {KEPT: 4 * sequences, TOKENS: 4 * sequences * self._header.ctx_len}
        said = {KEPT: group.kept, TOKENS: group.tokens, BATCHES: group.sequences}
        for name, start in sizes.items():
            _write_at(self.folder / group.section / name, said[name]().int(), start)

    def begun(self) -> dict[str, Any]:
        """Nothing that the state of a cache has beside the numbers of its tokens."""
        return {}

    def written(self, group: Group, state: dict[str, Any]) -> dict[str, Any]:
        """Nothing: what was written follows from the numbers of tokens."""
        return {}

    # The second pass

    def finish(self, state: dict[str, Any]) -> CacheManifest:
        """Permute what was dealt, each process some shards, and write the manifest."""
        with self._workers.together():
            own = self._complete_own(state["lengths"])
        hashes = {name: sha256 for each in self._workers.gather(own) for name, sha256 in each.items()}
        made: CacheManifest = self._workers.from_main(lambda: self._write_manifest(state, hashes))
        return made

    def _complete_own(self, lengths: dict[str, list[int]]) -> dict[str, str]:
        """{path: SHA-256} of this process's shards, in their final order."""
        finished, hashes = _read_finished(self.folder), dict[str, str]()
        places = shards_with_rows(lengths, self._widths)
        for place in places[self._workers.rank :: self._workers.size]:
            name = rows_path(*place[:3])
            if name in finished:
                hashes[name] = finished[name]
            else:
                hashes[name] = self._complete(*place)
                with (self.folder / _finished(self._workers.rank)).open("a") as file:
                    file.write(f"{hashes[name]}  {name}\n")
        return hashes

    def _complete(self, section: str, hookpoint: str, shard: int, tokens: int) -> str:
        """Bring one shard of so many tokens into its final order, unless it is; its SHA-256."""
        dealt, final = self._path(section, hookpoint, shard), self.folder / rows_path(section, hookpoint, shard)
        is_done = dealt == final or not dealt.exists()
        _check_size(final if is_done else dealt, tokens * self._widths[hookpoint])
        if is_done:
            return sha256_of(final)
        rows = np.fromfile(dealt, np.uint8).reshape(-1, self._widths[hookpoint])
        rows = rows[permuted(self._header, shard, len(rows))]
        write_atomically(final, rows.data)
        dealt.unlink()
        return hashlib.sha256(rows.data).hexdigest()

    def _write_manifest(self, state: dict[str, Any], hashes: dict[str, str]) -> CacheManifest:
        said = [name for name in self._sizes(state) if (self.folder / TRAIN / name).exists()]  # not without a batch
        texts = (f"{HELD_OUT}/{TOKENS}", f"{HELD_OUT}/{KEPT}", *(f"{TRAIN}/{name}" for name in said))
        hashes = hashes | {name: sha256_of(self.folder / name) for name in texts}
        files = {name: ((self.folder / name).stat().st_size, sha256) for name, sha256 in sorted(hashes.items())}
        manifest = CacheManifest(self._header, state["lengths"], files)
        write_atomically(self.folder / MANIFEST, manifest_to_json(manifest).encode())
        tidy(self.folder)
        return manifest


def tidy(folder: Path) -> None:
    """Take away what only writing needs; the manifest is there."""
    for path in (folder / PROGRESS, *_all_finished(folder)):
        path.unlink(missing_ok=True)
    remove_left_lock(folder)


def _finished(rank: int) -> str:
    """Name of the list of what a process has finished: one for each, as several cannot append everywhere."""
    return FINISHED.replace(".", f"_{rank}.") if rank else FINISHED


def _all_finished(folder: Path) -> list[Path]:
    return sorted(folder.glob(FINISHED.replace(".", "*.")))


def _write_at(path: Path, rows: Tensor, start: int) -> None:
    """Write rows from byte `start` of a file on, which is made if need be; nothing else of it changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
        file.seek(start)
        file.write(rows.contiguous().numpy().data)


def _check_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.exists() else 0
    if found != size:
        raise ValueError(
            f"{path} must have the {size} bytes that {PROGRESS} says, got {found}: the cache is damaged; delete it and "
            "write it again"
        )


def _cut_off(path: Path, size: int) -> None:
    if (path.stat().st_size if path.exists() else 0) < size:
        raise ValueError(f"{path} is shorter than {PROGRESS} says: the cache is damaged; delete it and write it again")
    if path.exists():
        os.truncate(path, size)


def _read_finished(folder: Path) -> dict[str, str]:
    """{path: SHA-256} of the files that the second pass is done with; a last line that was cut off does not count."""
    found: dict[str, str] = {}
    for path in _all_finished(folder):
        if (size := path.stat().st_size) > _MAX_FINISHED_BYTES:
            raise ValueError(f"{path} must be at most {_MAX_FINISHED_BYTES} bytes, got {size}; delete it, and repeat")
        lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]
        pairs = [line.partition("  ") for line in lines]
        found |= {name: sha256 for sha256, _, name in pairs if _IS_SHA256(sha256)}
    return found
