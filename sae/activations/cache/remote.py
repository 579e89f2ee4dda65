"""A cache behind an address while it is written: nothing can be appended or renamed there, so each group is a file.

<cache>/dealt/<section>-<batch>   the rows of neighbouring batches that one process made, sorted by shard
<cache>/done/<number>             SHA-256 of a shard that is complete

A file of `dealt` begins with how many sequences and batches it is of, and how many tokens each shard gets. Then follow
`kept`, `batches` and `tokens`, as in train/. Last are the rows of each hookpoint.
The second pass gathers each shard from all of them. What `progress.json` does not name is left alone or replaced.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from sae.activations.cache.format import (
    BATCHES,
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
from sae.activations.cache.groups import Group, shards_with_rows, share
from sae.activations.cache.order import permuted
from sae.activations.workers import Workers
from sae.data.retry import patiently
from sae.storage.files import MANIFEST, json_object
from sae.storage.remote import RemoteFolder

_MAX_PROGRESS_BYTES = 2**26
DEALT, DONE = "dealt", "done"
_AT_ONCE = 256
"""Parts that are asked for side by side."""


class _Part(NamedTuple):
    """One file of `dealt`, by what its beginning says."""

    name: str
    lengths: Int64[np.ndarray, " shards"]
    """Its tokens in each shard."""
    sequences: int
    batches: int

    def text_at(self, ctx_len: int) -> dict[str, tuple[int, int]]:
        """{file of the tokens: (start, stop)}"""
        sizes = {KEPT: 4 * self.sequences, BATCHES: 4 * self.batches, TOKENS: 4 * self.sequences * ctx_len}
        ends = np.cumsum([8 * (2 + len(self.lengths)), *sizes.values()]).tolist()
        return {name: (start, start + size) for start, (name, size) in zip(ends, sizes.items(), strict=False)}

    def rows_at(self, hookpoint: str, shard: int, widths: dict[str, int], ctx_len: int) -> tuple[int, int]:
        """(start, stop) of the rows of a shard."""
        names = list(widths)
        before = sum(widths[name] for name in names[: names.index(hookpoint)]) * int(self.lengths.sum())
        start = self.text_at(ctx_len)[TOKENS][1] + before + int(self.lengths[:shard].sum()) * widths[hookpoint]
        return start, start + int(self.lengths[shard]) * widths[hookpoint]


class AddressFiles:
    """Files of a cache behind an address, as `FolderFiles` are those of one in a folder."""

    def __init__(self, folder: RemoteFolder, header: CacheHeader, workers: Workers) -> None:
        self.folder, self._header, self._workers = folder, header, workers
        self._widths = {name: row_bytes(d_in, header.dtype) for name, d_in in header.hookpoints.items()}

    # Beginning and continuing

    def progress(self) -> dict[str, Any] | None:
        """The progress that an earlier call has left; None if there was none."""
        if not self.folder.has(PROGRESS):
            return None
        content = self.folder.read(PROGRESS, max_bytes=_MAX_PROGRESS_BYTES)
        return json_object(content, f"{self.folder}/{PROGRESS}")

    def save_progress(self, state: dict[str, Any]) -> None:
        """Say how far the cache is. The main process calls it, once everything up to there is in the store."""
        self.folder.write(PROGRESS, json.dumps(state).encode())

    def cut_off(self, saved: dict[str, Any]) -> None:
        """Nothing is taken away: a file that the progress does not name is not read. Raises ValueError without one."""
        if not _are_parts(saved.get("parts")):
            raise ValueError(f"{self.folder}/{PROGRESS} must list its parts, and does not; remove the folder")

    def begun(self) -> dict[str, Any]:
        """What the state of a cache has beside the numbers of its tokens: the first batch of each part."""
        return {"parts": {HELD_OUT: [], TRAIN: []}}

    # The first pass

    def write(self, group: Group, shards: Int64[np.ndarray, " tokens"], state: dict[str, Any]) -> None:
        """Write this process's part of a group, if it made one."""
        own, lengths = group.own_tokens, state["lengths"][group.section]
        if group.own:
            counts = np.bincount(shards[own], minlength=len(lengths))
            order = np.argsort(shards[own], kind="stable")
            mine = group._replace(batches=[group.batches[place] for place in group.own])
            texts = [mine.kept(), mine.sequences(), mine.tokens().flatten()]
            start = np.concatenate([[len(texts[0]), len(texts[1])], counts]).astype(np.int64)
            rows = (group.rows(name)[order].contiguous().numpy().tobytes() for name in self._widths)
            content = [start.tobytes(), *(text.to(torch.int32).numpy().tobytes() for text in texts), *rows]
            name = _name(group.section, group.done + group.own.start)
            patiently(lambda: self.folder.write(name, b"".join(content)))

    def written(self, group: Group, state: dict[str, Any]) -> dict[str, Any]:
        """What changes in the state by a group, of which all processes have written their parts."""
        size, parts = self._workers.size, state["parts"]
        shares = [share(group.asked, rank, size) for rank in range(size)]
        new = [group.done + each.start for each in shares if each and each.start < len(group.batches)]
        return {"parts": parts | {group.section: parts[group.section] + new}}

    # The second pass

    def finish(self, state: dict[str, Any]) -> CacheManifest:
        """Gather the shards, each process some, and write the manifest."""
        with self._workers.together():
            parts = {section: self._parts(section, state) for section in (HELD_OUT, TRAIN)}
            own = self._complete_own(parts, state["lengths"])
        files = {name: file for each in self._workers.gather(own) for name, file in each.items()}
        made: CacheManifest = self._workers.from_main(lambda: self._write_manifest(parts, state, files))
        return made

    def _parts(self, section: str, state: dict[str, Any]) -> list[_Part]:
        shards = len(state["lengths"][section])
        names = [_name(section, done) for done in state["parts"][section]]
        found = []
        for content, name in zip(self._read([(name, 0, 8 * (2 + shards)) for name in names]), names, strict=True):
            sequences, batches, *lengths = np.frombuffer(content, np.int64).tolist()
            found.append(_Part(name, np.array(lengths, np.int64), sequences, batches))
        if [sum(int(part.lengths[shard]) for part in found) for shard in range(shards)] != state["lengths"][section]:
            raise ValueError(f"{self.folder}/{DEALT} must hold what {PROGRESS} says; remove the folder and begin anew")
        return found

    def _read(self, places: list[tuple[str, int, int]]) -> Iterator[bytes]:
        for first in range(0, len(places), _AT_ONCE):
            some = places[first : first + _AT_ONCE]
            yield from patiently(lambda some=some: self.folder.read_parts(some))  # type: ignore[misc]

    def _complete_own(self, parts: dict[str, list[_Part]], lengths: dict[str, list[int]]) -> dict[str, tuple[int, str]]:
        """{path: (bytes, SHA-256)} of this process's shards, written in their final order."""
        places = [place[:3] for place in shards_with_rows(lengths, self._widths)]
        done = self.folder.sizes(DONE)
        own = list(enumerate(places))[self._workers.rank :: self._workers.size]
        return {rows_path(*place): self._complete(number, *place, parts[place[0]], done) for number, place in own}

    def _complete(
        self, number: int, section: str, hookpoint: str, shard: int, parts: list[_Part], done: dict[str, int]
    ) -> tuple[int, str]:
        """Gather one shard, unless it is there; its bytes and SHA-256."""
        mark, name = f"{DONE}/{number}", rows_path(section, hookpoint, shard)
        ctx_len, width = self._header.ctx_len, self._widths[hookpoint]
        size = sum(int(part.lengths[shard]) for part in parts) * width
        if mark in done:
            return size, self.folder.read(mark, max_bytes=64).decode()
        places = [(part.name, *part.rows_at(hookpoint, shard, self._widths, ctx_len)) for part in parts]
        content = b"".join(self._read([place for place in places if place[1] < place[2]]))
        rows = np.frombuffer(content, np.uint8).reshape(-1, width)
        if section == TRAIN and self._header.shuffled:
            rows = rows[permuted(self._header, shard, len(rows))]
        patiently(lambda: self.folder.write(name, rows.data))
        sha256 = hashlib.sha256(rows.data).hexdigest()
        self.folder.write(mark, sha256.encode())
        return size, sha256

    def _write_manifest(
        self, parts: dict[str, list[_Part]], state: dict[str, Any], files: dict[str, tuple[int, str]]
    ) -> CacheManifest:
        texts = {HELD_OUT: (TOKENS, KEPT), TRAIN: (KEPT, TOKENS, *((BATCHES,) if self._header.shuffled else ()))}
        written = {
            f"{section}/{name}": self._write_text(section, name, parts[section])
            for section, names in texts.items()
            for name in names
            if parts[section] or section == HELD_OUT
        }
        manifest = CacheManifest(self._header, state["lengths"], dict(sorted((files | written).items())))
        self.folder.write(MANIFEST, manifest_to_json(manifest).encode())
        tidy(self.folder)
        return manifest

    def _write_text(self, section: str, name: str, parts: list[_Part]) -> tuple[int, str]:
        """Write one of the files that say which tokens there are; its bytes and SHA-256."""
        places = [(part.name, *part.text_at(self._header.ctx_len)[name]) for part in parts]
        size, digest = 0, hashlib.sha256()

        def blocks() -> Iterator[bytes]:
            nonlocal size
            for block in self._read(places):
                size += len(block)
                digest.update(block)
                yield block

        self.folder.write_blocks(f"{section}/{name}", blocks())
        return size, digest.hexdigest()


def tidy(folder: RemoteFolder) -> None:
    """Take away what only writing needs; the manifest is there."""
    for below in (DEALT, DONE):
        folder.remove_below(below)
    folder.remove([PROGRESS])


def _are_parts(found: object) -> bool:
    return (
        isinstance(found, dict)
        and set(found) == {HELD_OUT, TRAIN}
        and all(
            isinstance(each, list) and all(type(n) is int and 0 <= n < 10**9 for n in each) for each in found.values()
        )
    )


def _name(section: str, done: int) -> str:
    return f"{DEALT}/{section}-{done:09d}"
