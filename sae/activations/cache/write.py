"""Write a cache of activations: shuffled over the whole data set in two passes, and continued after any death.

First pass: every token is dealt to a shard at random, the same at every hookpoint, and put behind those that the shard
has. Second pass: each shard is read into memory, permuted, and written out. Together that is a uniformly random order
of all tokens, in the memory of one shard and one buffer. A cache in a live run's order needs no second pass.

Where a row lies depends on its token alone, so several processes write side by side what one alone would write. All
read the tokens, each runs the language model on its share, and they meet before the progress is saved.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int64
from torch import Tensor

from sae.activations.cache.format import (
    HELD_OUT,
    KEPT,
    PROGRESS,
    SHARD_BYTES,
    TRAIN,
    CacheHeader,
    CacheManifest,
    read_manifest,
    row_bytes,
)
from sae.activations.cache.groups import Group, Next, ReadBatch, read_group
from sae.activations.cache.local import FolderFiles
from sae.activations.cache.local import tidy as tidy_folder
from sae.activations.cache.order import dealt
from sae.activations.cache.remote import AddressFiles
from sae.activations.cache.remote import tidy as tidy_address
from sae.activations.source import LiveActivations
from sae.activations.workers import ONE_WORKER, Workers
from sae.storage.files import MANIFEST, absolute, free_bytes, full_disk_explained, nearest
from sae.storage.lock import alone_in, holds_nothing
from sae.storage.remote import RemoteFolder

BUFFER_BYTES, APPEND_BYTES = 2**26, 2**16
"""Rows are collected up to the larger of 64 MiB and 64 KiB for each file that they are dealt to."""


class CacheSize(NamedTuple):
    """What a cache will take, at most: how many tokens are excluded is not known before they are read."""

    tokens: int
    """Tokens of the section `train`."""
    bytes_per_token: int
    num_shards: int
    held_out_bytes: int
    peak_bytes: int
    """While it is written: a shard is there twice while a process permutes it."""

    @property
    def bytes(self) -> int:
        """In all, once complete."""
        return self.tokens * self.bytes_per_token + self.held_out_bytes


def cache_size(
    widths: dict[str, int], dtype: str, *, tokens: int, held_out_tokens: int, shuffled: bool, processes: int = 1
) -> CacheSize:
    """The size of a cache of so many tokens, and into how many shards each hookpoint's are cut."""
    rows = [row_bytes(d_in, dtype) for d_in in widths.values()]
    held_out_bytes = held_out_tokens * (sum(rows) + 4)
    peak_bytes = tokens * sum(rows) + held_out_bytes + shuffled * processes * SHARD_BYTES
    num_shards = max(1, -(-tokens // (SHARD_BYTES // max(rows))))
    return CacheSize(tokens, sum(rows), num_shards, held_out_bytes, peak_bytes)


def check_space(folder: Path, size: CacheSize) -> None:
    """Raise ValueError if what is left to write of a cache does not fit on the disk."""
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = free_bytes(folder)
    if free + written < size.peak_bytes:
        raise ValueError(
            f"the cache must fit on the disk with {size.peak_bytes / 1e9:.2f} GB, but {nearest(folder)} has "
            f"{free / 1e9:.2f} GB left; make room, lower --max_tokens, or choose another --activations"
        )


def write_cache(
    folder: Path | RemoteFolder,
    header: CacheHeader,
    source: LiveActivations,
    held_out: Iterable[Int[Tensor, "sequences ctx_len"]],
    *,
    on_batch: Callable[[int], None] = lambda batches: None,
    tell: Callable[[str], None] = lambda sentence: None,
    workers: Workers = ONE_WORKER,
) -> CacheManifest:
    """Write the cache, or what is missing of it, and return its manifest. `on_batch` gets the number of batches done.

    The folder must be new, empty, or left by an earlier call with the same arguments, by any number of `workers`. If
    the cache is complete, with as many sequences as are asked for, nothing happens. Raises ValueError for any other
    folder, or if another call writes there. Raises OSError in one line if the disk is full. Repeating the call
    continues. `held_out` are token ids. `tell` gets a sentence if the folder cannot be locked.
    """
    _check_agreed(header, workers)
    with ExitStack() as stack:
        complete = workers.from_main(lambda: _opened(folder, header, stack, tell))
        if complete is not None:
            return CacheManifest(*complete)
        with _full_disk_explained(folder):
            return _write(folder, header, source, held_out, on_batch, workers)


def _opened(
    folder: Path | RemoteFolder, header: CacheHeader, stack: ExitStack, tell: Callable[[str], None]
) -> CacheManifest | None:
    """The manifest, if the cache is complete; else the folder is there, and locked until the stack is left."""
    if isinstance(folder, RemoteFolder):
        return _opened_address(folder, header, tell)
    if (folder / MANIFEST).exists():
        return _complete(folder, header)
    if not (folder / PROGRESS).exists():
        _check_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(alone_in(folder, tell=tell))
    # another process may have just completed it
    return _complete(folder, header) if (folder / MANIFEST).exists() else None


def _opened_address(folder: RemoteFolder, header: CacheHeader, tell: Callable[[str], None]) -> CacheManifest | None:
    if folder.has(MANIFEST):
        return _complete(folder, header)
    if not folder.has(PROGRESS) and folder.sizes():
        raise _not_new(folder)
    tell(f"{folder} cannot be locked: see to it that no other command writes there")
    return None


def _check_agreed(header: CacheHeader, workers: Workers) -> None:
    """Raise ValueError, on all processes, unless all have the same model, data and options."""
    given = [json.loads(json.dumps(header._asdict()))]
    for rank, other in enumerate(workers.gather(given[0])):
        if other != given[0]:
            name = next(name for name in other if other[name] != given[0][name])
            raise ValueError(
                f"all processes must cache the same, but {name} of process {rank} differs from that of process "
                f"{workers.rank}; give all the same model, data and options"
            )


def _complete(folder: Path | RemoteFolder, header: CacheHeader) -> CacheManifest:
    """The manifest of a cache that is complete. Raises ValueError if another, or a larger one, is asked for."""
    manifest = read_manifest(folder)
    has, asked = _sequences(manifest), header.sequences
    if has is not None and asked is not None and asked > has:
        raise ValueError(
            f"the cache in {folder} is complete with {has * header.ctx_len:,} tokens, and {asked * header.ctx_len:,} "
            "are asked for; choose another --activations, or give --max_tokens as it was then"
        )
    _check_same(folder, manifest.header._replace(sequences=asked)._asdict(), header)
    if isinstance(folder, RemoteFolder):
        tidy_address(folder)
    else:
        tidy_folder(folder)
    return manifest


def _sequences(manifest: CacheManifest) -> int | None:
    """Sequences that a complete cache was asked for. For an older cache: those that it has, None if that is unknown."""
    header = manifest.header
    if header.sequences is not None or header.num_sequences is None:
        return header.sequences
    if f"{TRAIN}/{KEPT}" in manifest.files:
        return manifest.files[f"{TRAIN}/{KEPT}"][0] // 4
    excludes = header.options.get("exclude_tokens") or header.options.get("exclude_positions")
    return None if excludes else sum(manifest.shards[TRAIN]) // header.ctx_len


def _check_new(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and holds_nothing(folder)):
        raise _not_new(folder)


def _not_new(folder: Path | RemoteFolder) -> ValueError:
    return ValueError(
        f"activations must name a new folder or an unfinished cache, but {folder} holds something else; "
        "choose another --activations, or move it away"
    )


def _full_disk_explained(folder: Path | RemoteFolder) -> AbstractContextManager[None]:
    return full_disk_explained(
        lambda reason: f"the disk is full ({reason}: {folder}); make room and repeat the command: it continues"
    )


def _write(
    folder: Path | RemoteFolder,
    header: CacheHeader,
    source: LiveActivations,
    held_out: Iterable[Int[Tensor, "sequences ctx_len"]],
    on_batch: Callable[[int], None],
    workers: Workers,
) -> CacheManifest:
    files: FolderFiles | AddressFiles
    if isinstance(folder, RemoteFolder):
        files = AddressFiles(folder, header, workers)
    else:
        files = FolderFiles(folder, header, workers)
    writer = _Writer(files, header, workers)
    if not writer.finishing:
        _first_pass(writer, source, held_out, on_batch)
    return writer.finish()


def _first_pass(
    writer: "_Writer",
    source: LiveActivations,
    held_out: Iterable[Int[Tensor, "sequences ctx_len"]],
    on_batch: Callable[[int], None],
) -> None:
    if writer.position is None:
        _write_held_out(writer, source, held_out)
        writer.commit(source.state_dict())
    else:
        with _understood(writer.files.folder):
            source.load_state_dict(writer.position)
    while True:
        done, number = source.batch_index, writer.batches_at_once()
        number = number if source.num_batches is None else min(number, source.num_batches - done)
        if not writer.write(TRAIN, done, number, lambda mine: writer.read_next(source, mine), on_batch):
            break
        writer.commit(source.state_dict())
    writer.commit(source.state_dict(), finishing=True)


def _write_held_out(
    writer: "_Writer", source: LiveActivations, held_out: Iterable[Int[Tensor, "sequences ctx_len"]]
) -> None:
    batches, done = writer.all_of(held_out), 0
    each = iter(batches)
    while done < len(batches):
        number = min(len(batches) - done, writer.batches_at_once())
        done += writer.write(HELD_OUT, done, number, lambda mine: writer.read(source, next(each), mine))


class _Writer:
    """How far a cache is, and what is read for it; the same on all processes. `files` is where it is written."""

    def __init__(self, files: FolderFiles | AddressFiles, header: CacheHeader, workers: Workers) -> None:
        self.files, self._header, self._workers = files, header, workers
        self._widths = {name: row_bytes(d_in, header.dtype) for name, d_in in header.hookpoints.items()}
        self._state: dict[str, Any] = workers.from_main(self._begin_or_continue)
        self._held_out_sequences = 0
        self._batch_tokens: int | None = None
        """Tokens that count in a batch, about; a last one may be smaller."""

    @property
    def position(self) -> dict[str, Any] | None:
        """Where the source continues; None at the beginning."""
        place: dict[str, Any] | None = self._state["place"]
        return place

    @property
    def finishing(self) -> bool:
        """Whether the first pass is complete."""
        return bool(self._state["finishing"])

    def _begin_or_continue(self) -> dict[str, Any]:
        """The state of the cache, with nothing behind it on the disk."""
        lengths = {TRAIN: [0] * self._header.num_shards, HELD_OUT: [0]}
        saved = self.files.progress()
        if saved is None:
            begun: dict[str, Any] = {"header": self._header._asdict(), "place": None, "finishing": False}
            begun |= {"lengths": lengths, "sequences": 0, "batches": 0, **self.files.begun()}
            self.files.save_progress(begun)
            return begun
        with _understood(self.files.folder):
            _check_same(self.files.folder, saved["header"], self._header)
            if not _is_progress(saved, lengths):
                raise _not_progress(self.files.folder)
        if not saved["finishing"]:
            self.files.cut_off(saved)
        return saved

    # The first pass

    def all_of(self, held_out: Iterable[Tensor]) -> list[Tensor]:
        """The held-out batches of tokens, which are few."""
        with self._workers.together():
            return list(held_out)

    def read(self, source: LiveActivations, tokens: Int[Tensor, "sequences ctx_len"], mine: bool) -> ReadBatch:
        """These held-out tokens; with their rows if they are `mine`."""
        if mine:
            return ReadBatch.of(source.batch(tokens), self._header.dtype)
        return ReadBatch.without_rows(tokens, source.kept(tokens))

    def read_next(self, source: LiveActivations, mine: bool) -> ReadBatch | None:
        """The next tokens of the source; with their rows if they are `mine`."""
        if mine:
            batch = source.next_batch()
            return None if batch is None else ReadBatch.of(batch, self._header.dtype)
        tokens = source.next_tokens()
        return None if tokens is None else ReadBatch.without_rows(tokens, source.kept(tokens))

    def batches_at_once(self) -> int:
        """How many batches all processes collect before they write: one each, until the size of a batch is known."""
        if self._batch_tokens is None:
            return self._workers.size
        bytes_of_batch = self._batch_tokens * sum(self._widths.values())
        wanted = max(BUFFER_BYTES, APPEND_BYTES * self._header.num_shards * len(self._widths))
        return self._workers.size * max(1, -(-wanted // max(1, bytes_of_batch)))

    def write(
        self,
        section: str,
        done: int,
        number: int,
        following: Next,
        on_batch: Callable[[int], None] = lambda batches: None,
    ) -> int:
        """Write the next `number` batches after the `done` ones, of which each process makes a share.

        Returns how many there were, fewer at the end.
        """
        with self._workers.together():
            group = read_group(section, done, number, following, on_batch, self._workers)
            shards = self._shards(group)
            if group.batches:
                self.files.write(group, shards, self._state | {"held_out_sequences": self._held_out_sequences})
        if group.batches:
            self._count(group, shards)
        return len(group.batches)

    def _shards(self, group: Group) -> Int64[np.ndarray, " tokens"]:
        """The shard of each token of a group."""
        counts = group.counts
        if group.section == HELD_OUT:
            return np.zeros(counts.sum(), np.int64)
        if not self._header.shuffled:
            per_shard = SHARD_BYTES // max(self._widths.values())
            return (sum(self._state["lengths"][TRAIN]) + np.arange(counts.sum())) // per_shard
        shards = [dealt(self._header, number, int(count)) for number, count in enumerate(counts, group.done + 1)]
        return np.concatenate([np.zeros(0, np.int64), *shards])

    def _count(self, group: Group, shards: Int64[np.ndarray, " tokens"]) -> None:
        """Count what was written; it is not yet committed."""
        lengths = self._state["lengths"]
        own = lengths[group.section]
        written = np.bincount(shards, minlength=len(own)).tolist()
        sequences = sum(len(batch.kept) for batch in group.batches)
        self._batch_tokens = max(1, self._batch_tokens or 0, len(shards) // len(group.batches))
        self._state = self._state | self.files.written(group, self._state)
        self._state = self._state | {
            "lengths": lengths | {group.section: [a + b for a, b in zip(own, written, strict=True)]}
        }
        if group.section == HELD_OUT:
            self._held_out_sequences += sequences
            return
        self._state["sequences"] += sequences
        if "batches" in self._state:  # not if an older version began the cache
            self._state["batches"] += len(group.batches)

    def commit(self, position: dict[str, Any], *, finishing: bool = False) -> None:
        """Save the progress; what is counted is on the disk."""
        self._state = self._state | {"place": position, "finishing": finishing}
        self._workers.from_main(lambda: self.files.save_progress(self._state))

    # The second pass

    def finish(self) -> CacheManifest:
        """Bring the shards into their order, and write the manifest."""
        return self.files.finish(self._state)


def _check_same(folder: Path | RemoteFolder, found: dict[str, Any], header: CacheHeader) -> None:
    given = json.loads(json.dumps(header._asdict()))
    before = CacheHeader._field_defaults | found
    paths = {name: before["options"].get(name) for name in ("model", "dataset")}  # older ones: as they were given
    before["options"] = before["options"] | {
        name: absolute(path) for name, path in paths.items() if isinstance(path, str)
    }
    replaced = _replaced(before.pop("fingerprints"), given.pop("fingerprints"))
    if None in (before["sequences"], given["sequences"]):
        del given["sequences"]
    changed = replaced + [
        f"{name} was {before.get(name)!r:.200} and is {given[name]!r:.200}"
        for name in given
        if before.get(name) != given[name]
    ]
    if changed:
        raise ValueError(
            f"the cache in {folder} must be continued as it was begun, but {', '.join(changed[:3])}; "
            "repeat the command that began it, or choose another --activations"
        )


def _replaced(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names of model or data that now stand for others than the cache began with; an older cache does not say."""
    names = {"model": "the model has other weights", "held_out": "the data hold other text or tokens"}
    return [words for name, words in names.items() if before.get(name) and now.get(name) not in ("", before[name])]


@contextmanager
def _understood(folder: object) -> Iterator[None]:
    """An error of any kind about a progress.json that its reader did not expect becomes a ValueError of one line."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise _not_progress(folder) from error


def _not_progress(folder: object) -> ValueError:
    return ValueError(
        f"{folder}/{PROGRESS} must say how far the cache is, and does not; delete the folder and write it again"
    )


def _is_progress(saved: dict[str, Any], lengths: dict[str, list[int]]) -> bool:
    """Whether a progress.json has what a writer with these sections and shards saves."""
    found = saved["lengths"]
    shards = {section: len(tokens) for section, tokens in found.items()}
    counts = [saved["sequences"], saved.get("batches", 0), *(count for tokens in found.values() for count in tokens)]
    return (
        shards == {section: len(tokens) for section, tokens in lengths.items()}
        and all(type(count) is int and 0 <= count < 2**48 for count in counts)
        and type(saved["finishing"]) is bool
        and isinstance(saved["place"], dict | None)
    )
