"""Write a cache of activations: shuffled over the whole data set in two passes, and continued after any death.

First pass: every token is dealt to a shard at random, the same at every hookpoint, and appended to it. Second pass:
each shard is read into memory, permuted, and written out. Together that is a uniformly random order of all tokens, in
the memory of one shard and one buffer, with sequential writes only. A cache in a live run's order needs no second pass.
What `progress.json` says is on disk; what lies behind it is cut off when the writing continues.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from sae.activations.cache.format import (
    BATCHES,
    FINISHED,
    HELD_OUT,
    KEPT,
    PROGRESS,
    SHARD_BYTES,
    TOKENS,
    TRAIN,
    CacheHeader,
    CacheManifest,
    encode_rows,
    manifest_to_json,
    read_manifest,
    row_bytes,
    rows_path,
)
from sae.activations.cache.order import dealt, permuted
from sae.activations.source import Batch, LiveActivations
from sae.storage.files import MANIFEST, absolute, read_json, sha256_of, write_atomically
from sae.storage.lock import alone_in, holds_nothing, remove_left_lock

BUFFER_BYTES, APPEND_BYTES = 2**26, 2**16
"""Rows are collected up to the larger of 64 MiB and 64 KiB for each file that they are dealt to."""
_MAX_PROGRESS_BYTES = _MAX_FINISHED_BYTES = 2**26
"""A position in a stream holds the tokens that wait; finished.txt has a line for every shard."""
_IS_SHA256 = re.compile("[0-9a-f]{64}").fullmatch
DEALT = ".dealt"
"""Ending of a shard whose rows are not yet permuted."""


class CacheSize(NamedTuple):
    """What a cache will take, at most: how many tokens are excluded is not known before they are read."""

    tokens: int
    """Tokens of the section `train`."""
    bytes_per_token: int
    num_shards: int
    held_out_bytes: int
    peak_bytes: int
    """While it is written: a shard is there twice while it is permuted."""

    @property
    def bytes(self) -> int:
        """In all, once complete."""
        return self.tokens * self.bytes_per_token + self.held_out_bytes


def cache_size(widths: dict[str, int], dtype: str, *, tokens: int, held_out_tokens: int, shuffled: bool) -> CacheSize:
    """The size of a cache of so many tokens, and into how many shards each hookpoint's are cut."""
    rows = [row_bytes(d_in, dtype) for d_in in widths.values()]
    held_out_bytes = held_out_tokens * (sum(rows) + 4)
    peak_bytes = tokens * sum(rows) + held_out_bytes + shuffled * SHARD_BYTES
    num_shards = max(1, -(-tokens // (SHARD_BYTES // max(rows))))
    return CacheSize(tokens, sum(rows), num_shards, held_out_bytes, peak_bytes)


def check_space(folder: Path, size: CacheSize) -> None:
    """Raise ValueError if what is left to write of a cache does not fit on the disk."""
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(existing).free
    if free + written < size.peak_bytes:
        raise ValueError(
            f"the cache must fit on the disk with {size.peak_bytes / 1e9:.2f} GB, but {existing} has "
            f"{free / 1e9:.2f} GB left; make room, lower --max_tokens, or choose another --activations"
        )


def write_cache(
    folder: Path,
    header: CacheHeader,
    source: LiveActivations,
    held_out: Iterable[Batch],
    *,
    on_batch: Callable[[int], None] = lambda batches: None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> CacheManifest:
    """Write the cache, or what is missing of it, and return its manifest. `on_batch` gets the number of batches done.

    The folder must be new, empty, or left by an earlier call with the same arguments. If the cache is complete, with as
    many sequences as are asked for, nothing happens. Raises ValueError for any other folder, or if another process
    writes there. Raises OSError in one line if the disk is full. Repeating the call continues. `tell` gets a sentence
    if the folder cannot be locked.
    """
    if (folder / MANIFEST).exists():
        return _complete(folder, header)
    if not (folder / PROGRESS).exists():
        _check_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder, tell=tell):
        if (folder / MANIFEST).exists():  # another process has just completed it
            return _complete(folder, header)
        return _write(folder, header, source, held_out, on_batch)


def _complete(folder: Path, header: CacheHeader) -> CacheManifest:
    """The manifest of a cache that is complete. Raises ValueError if another, or a larger one, is asked for."""
    manifest = read_manifest(folder)
    has, asked = _sequences(manifest), header.sequences
    if has is not None and asked is not None and asked > has:
        raise ValueError(
            f"the cache in {folder} is complete with {has * header.ctx_len:,} tokens, and {asked * header.ctx_len:,} "
            "are asked for; choose another --activations, or give --max_tokens as it was then"
        )
    _check_same(folder, manifest.header._replace(sequences=asked)._asdict(), header)
    _tidy(folder)
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
        raise ValueError(
            f"activations must name a new folder or an unfinished cache, but {folder} holds something else; "
            "choose another --activations, or move it away"
        )


def _write(
    folder: Path,
    header: CacheHeader,
    source: LiveActivations,
    held_out: Iterable[Batch],
    on_batch: Callable[[int], None],
) -> CacheManifest:
    try:
        writer = _Writer(folder, header)
        if not writer.finishing:
            _first_pass(writer, source, held_out, on_batch)
        return writer.finish()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"the disk is full ({error.strerror}: {folder}); make room and repeat the command: it continues"
        ) from error


def _first_pass(
    writer: "_Writer", source: LiveActivations, held_out: Iterable[Batch], on_batch: Callable[[int], None]
) -> None:
    if writer.position is None:
        writer.write_held_out(held_out)
        writer.commit(source.state_dict())
    else:
        with _understood(writer.folder):
            source.load_state_dict(writer.position)
    while batch := source.next_batch():
        writer.add(batch, source.batch_index)
        if writer.is_full:
            writer.commit(source.state_dict())
        on_batch(source.batch_index)
    writer.commit(source.state_dict(), finishing=True)


class _Rows(NamedTuple):
    """One batch as bytes."""

    rows: dict[str, Tensor]
    """{hookpoint: (tokens, row_bytes)}"""
    kept: Int64[Tensor, " sequences"]
    """How many tokens of each sequence are among them."""
    tokens: Int[Tensor, "sequences ctx_len"]
    number: int


class _Writer:
    """The files of a cache during writing."""

    def __init__(self, folder: Path, header: CacheHeader) -> None:
        self.folder, self._header = folder, header
        self._widths = {name: row_bytes(d_in, header.dtype) for name, d_in in header.hookpoints.items()}
        self._lengths = {TRAIN: [0] * header.num_shards, HELD_OUT: [0]}
        self._sequences = self._batches = 0
        """Sequences of the section `train` whose rows are on disk, and the batches that they came in."""
        self._says_text = True
        """Whether the token ids are written: not if an older version began the cache."""
        self._buffer: list[_Rows] = []
        self.position: dict[str, Any] | None = None
        """Where the source continues; None at the beginning."""
        self.finishing = False
        """Whether the first pass is complete."""
        if (folder / PROGRESS).exists():
            self._continue()
        else:
            self._begin()

    # Beginning and continuing

    def _begin(self) -> None:
        self._save_progress()

    def _continue(self) -> None:
        saved = read_json(self.folder / PROGRESS, max_bytes=_MAX_PROGRESS_BYTES)
        with _understood(self.folder):
            _check_same(self.folder, saved["header"], self._header)
            if not _is_progress(saved, self._lengths):
                raise _not_progress(self.folder)
        self.position, self.finishing = saved["place"], saved["finishing"]
        self._lengths, self._sequences = saved["lengths"], saved["sequences"]
        self._batches = saved.get("batches", 0)
        self._says_text = "batches" in saved
        if self.finishing:
            return
        # what was written after the last progress
        for name, size in self._sizes().items():
            _cut_off(self.folder / TRAIN / name, size)
        if self.position is None:
            shutil.rmtree(self.folder / HELD_OUT, ignore_errors=True)
        for hookpoint, width in self._widths.items():
            for shard, tokens in enumerate(self._lengths[TRAIN]):
                _cut_off(self._path(TRAIN, hookpoint, shard), tokens * width)

    def _save_progress(self) -> None:
        state: dict[str, Any] = {"header": self._header._asdict(), "place": self.position, "finishing": self.finishing}
        state |= {"lengths": self._lengths, "sequences": self._sequences}
        state |= {"batches": self._batches} if self._says_text else {}
        write_atomically(self.folder / PROGRESS, json.dumps(state).encode())

    def _path(self, section: str, hookpoint: str, shard: int) -> Path:
        """Where the first pass writes."""
        dealt = DEALT if self._header.shuffled and section == TRAIN else ""
        return self.folder / (rows_path(section, hookpoint, shard) + dealt)

    def _sizes(self) -> dict[str, int]:
        """Bytes of the files that say of the section `train` which tokens it holds, by their names."""
        kept = {} if self._header.shuffled and not self._says_text else {KEPT: 4 * self._sequences}
        if not self._says_text:
            return kept
        batches = {BATCHES: 4 * self._batches} if self._header.shuffled else {}
        return kept | batches | {TOKENS: 4 * self._sequences * self._header.ctx_len}

    # The first pass

    def write_held_out(self, batches: Iterable[Batch]) -> None:
        """Write the held-out tokens, in their order."""
        for batch in batches:
            one = self._encode(batch, 0)
            self._append(HELD_OUT, one.rows, torch.zeros(len(batch.kept), dtype=torch.int64))
            _append(self.folder / HELD_OUT / TOKENS, batch.tokens.int())
            _append(self.folder / HELD_OUT / KEPT, one.kept.int())

    def add(self, batch: Batch, number: int) -> None:
        """Take the batch with this number."""
        self._buffer.append(self._encode(batch, number))

    @property
    def is_full(self) -> bool:
        """Whether it is time to commit."""
        collected = sum(rows.nbytes for one in self._buffer for rows in one.rows.values())
        return collected >= max(BUFFER_BYTES, APPEND_BYTES * self._header.num_shards * len(self._widths))

    def commit(self, position: dict[str, Any], *, finishing: bool = False) -> None:
        """Bring what is collected to the disk, and then the progress that says so."""
        if self._buffer:
            rows = {name: torch.cat([one.rows[name] for one in self._buffer]) for name in self._widths}
            self._append(TRAIN, rows, self._dealt())
            kept = [one.kept for one in self._buffer]
            said = {
                KEPT: torch.cat(kept),
                TOKENS: torch.cat([one.tokens for one in self._buffer]),
                BATCHES: torch.tensor([len(of_batch) for of_batch in kept]),
            }
            for name in self._sizes():
                _append(self.folder / TRAIN / name, said[name].int())
            self._sequences += sum(len(of_batch) for of_batch in kept)
            self._batches += len(self._buffer)
            self._buffer = []
        os.sync()
        self.position, self.finishing = position, finishing
        self._save_progress()

    def _encode(self, batch: Batch, number: int) -> _Rows:
        rows = {name: encode_rows(acts, self._header.dtype) for name, acts in batch.activations.items()}
        sequences, seq = batch.tokens.shape
        return _Rows(rows, torch.bincount(batch.kept // seq, minlength=sequences), batch.tokens, number)

    def _dealt(self) -> Int64[Tensor, " tokens"]:
        """The shard of each token that is collected."""
        counts = [int(one.kept.sum()) for one in self._buffer]
        if not self._header.shuffled:
            per_shard = SHARD_BYTES // max(self._widths.values())
            return (sum(self._lengths[TRAIN]) + torch.arange(sum(counts))) // per_shard
        shards = [dealt(self._header, one.number, count) for one, count in zip(self._buffer, counts, strict=True)]
        return torch.from_numpy(np.concatenate(shards))

    def _append(self, section: str, rows: dict[str, Tensor], shards: Int64[Tensor, " tokens"]) -> None:
        """Append each row to its shard; within a shard the rows stay in their order."""
        order = shards.argsort(stable=True)
        counts = torch.bincount(shards, minlength=len(self._lengths[section])).tolist()
        for hookpoint, of_hookpoint in rows.items():
            for shard, part in enumerate(of_hookpoint[order].split(counts)):
                if len(part):
                    _append(self._path(section, hookpoint, shard), part)
        self._lengths[section] = [a + b for a, b in zip(self._lengths[section], counts, strict=True)]

    # The second pass

    def finish(self) -> CacheManifest:
        """Permute what was dealt, and write the manifest."""
        finished, hashes = _read_finished(self.folder), dict[str, str]()
        for section, lengths in self._lengths.items():
            for hookpoint in self._widths:
                for shard, tokens in enumerate(lengths):
                    name = rows_path(section, hookpoint, shard)
                    if tokens and name in finished:
                        hashes[name] = finished[name]
                    elif tokens:
                        hashes[name] = self._complete(section, hookpoint, shard, tokens)
                        with (self.folder / FINISHED).open("a") as file:
                            file.write(f"{hashes[name]}  {name}\n")
        said = [name for name in self._sizes() if (self.folder / TRAIN / name).exists()]  # not without a batch
        for name in (f"{HELD_OUT}/{TOKENS}", f"{HELD_OUT}/{KEPT}", *(f"{TRAIN}/{name}" for name in said)):
            hashes[name] = sha256_of(self.folder / name)
        files = {name: ((self.folder / name).stat().st_size, sha256) for name, sha256 in sorted(hashes.items())}
        manifest = CacheManifest(self._header, self._lengths, files)
        write_atomically(self.folder / MANIFEST, manifest_to_json(manifest).encode())
        _tidy(self.folder)
        return manifest

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


def _tidy(folder: Path) -> None:
    """Take away what only writing needs; the manifest is there."""
    for name in (PROGRESS, FINISHED):
        (folder / name).unlink(missing_ok=True)
    remove_left_lock(folder)


def _check_same(folder: Path, found: dict[str, Any], header: CacheHeader) -> None:
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


def _append(path: Path, rows: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(rows.contiguous().numpy().data)


@contextmanager
def _understood(folder: Path) -> Iterator[None]:
    """An error of any kind about a progress.json that its reader did not expect becomes a ValueError of one line."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise _not_progress(folder) from error


def _not_progress(folder: Path) -> ValueError:
    return ValueError(
        f"{folder / PROGRESS} must say how far the cache is, and does not; delete the folder and write it again"
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
    path = folder / FINISHED
    if not path.exists():
        return {}
    if (size := path.stat().st_size) > _MAX_FINISHED_BYTES:
        raise ValueError(f"{path} must be at most {_MAX_FINISHED_BYTES} bytes, got {size}; delete it, and repeat")
    lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]
    pairs = [line.partition("  ") for line in lines]
    return {name: sha256 for sha256, _, name in pairs if _IS_SHA256(sha256)}
