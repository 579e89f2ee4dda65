"""Read a cache of activations: mapped into memory, a few batches ahead of who trains on them."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from sae.activations.cache.format import (
    BATCHES,
    HELD_OUT,
    KEPT,
    STORED_DTYPES,
    TOKENS,
    TRAIN,
    CacheHeader,
    decode_rows,
    manifest_content,
    read_manifest,
    row_bytes,
    rows_path,
)
from sae.activations.cache.order import row_of_token
from sae.activations.source import Activations, Batch, counted
from sae.data.position import count_in
from sae.data.retry import patiently
from sae.storage.files import sha256_of, short
from sae.storage.remote import Mapped, RemoteFolder, place_of

AHEAD, READERS = 2, 8
"""Batches that are read ahead, and threads that read: hookpoints are read side by side."""


Source = Path | Mapped
"""A file: by its name, or mapped into memory and without one."""


class ActivationCache:
    """A folder that `sae cache` wrote, opened. `SaeTrainer` takes it as its data, without a model.

    Sizes are checked when it is opened. The SHA-256 of a shard is checked while the one before it is read, which also
    brings it into memory. From behind an address it is fetched meanwhile, to the disk for temporary files. Three shards
    of a hookpoint at most are there at a time.
    """

    def __init__(self, folder: Path | str, *, device: torch.device | str = "cpu") -> None:
        """Open a cache.

        Args:
            folder: Folder that `sae cache` wrote, or its address, such as `s3://bucket/folder`.
            device: Device of the activations that are handed out.

        Raises:
            ValueError: Names the first file that is missing or damaged.
            OSError: In one line, for an address that cannot be reached.
        """
        self.folder, self.device = place_of(folder), torch.device(device)
        self._manifest = read_manifest(self.folder)
        found = _sizes(self.folder, self._manifest.files)
        for name, (size, _) in self._manifest.files.items():
            if found.get(name) != size:
                raise self._damaged(name)
        self._files: dict[str, Future[Source | None]] = {}
        self._hashing = ThreadPoolExecutor(READERS, thread_name_prefix="sha256")
        self._lock = Lock()

    @property
    def header(self) -> CacheHeader:
        """Contents of the cache."""
        return self._manifest.header

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of this cache: its manifest has the SHA-256 of every file."""
        return f"activations-{hashlib.sha256(manifest_content(self.folder)).hexdigest()[:32]}"

    @property
    def num_tokens(self) -> int:
        """Tokens to train on, without the excluded ones."""
        return sum(self._manifest.shards[TRAIN])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations that are handed out."""
        return torch.bfloat16 if self.header.dtype == "int8" else STORED_DTYPES[self.header.dtype]

    def kept(self, section: str) -> Int64[np.ndarray, " sequences"] | None:
        """Tokens of each sequence in a section; None if an older cache does not say. Raises ValueError for a damaged
        file.
        """
        name = f"{section}/{KEPT}"
        if name not in self._manifest.files:
            return None
        numbers = self._numbers(name)
        if (numbers < 0).any() or numbers.sum() != sum(self._manifest.shards[section]):
            raise self._damaged(name)
        return numbers

    def tokens(self, section: str) -> Int64[Tensor, "sequences ctx_len"] | None:
        """The token ids of a section, in the order of a live run; None if an older cache does not say."""
        name = f"{section}/{TOKENS}"
        if name not in self._manifest.files:
            return None
        ids = self._numbers(name)
        if len(ids) % self.header.ctx_len or (ids < 0).any():
            raise self._damaged(name)
        return torch.from_numpy(ids).view(-1, self.header.ctx_len)

    def held_out_tokens(self) -> Int64[Tensor, "sequences ctx_len"]:
        """The token ids of the held-out sequences."""
        tokens = self.tokens(HELD_OUT)
        assert tokens is not None  # the manifest was checked
        return tokens

    def row_of_token(self) -> Int64[np.ndarray, " tokens"]:
        """The row, in the section `train`, of each token that counts, in the order of a live run.

        Raises ValueError if the cache does not say it, or says what cannot be.
        """
        kept = self.kept(TRAIN)
        if kept is None:
            raise ValueError(f"{self.folder} must say where each token is, but an older sae wrote it; write it again")
        if not self.header.shuffled:
            return np.arange(kept.sum())
        sequences = self._numbers(name := f"{TRAIN}/{BATCHES}")
        if (sequences < 1).any() or sequences.sum() != len(kept):
            raise self._damaged(name)
        counts = np.add.reduceat(kept, np.cumsum(sequences) - sequences) if len(sequences) else kept
        return row_of_token(self.header, counts)

    def _numbers(self, name: str) -> Int64[np.ndarray, " numbers"]:
        whole = self._verified(name)
        found = np.fromfile(whole, np.int32) if isinstance(whole, Path) else np.frombuffer(whole, np.int32)
        return found.astype(np.int64)

    def rows(self, section: str, hookpoint: str) -> "CachedRows":
        """The activations of one hookpoint, by number."""
        return CachedRows(self, section, hookpoint, self._manifest.shards[section])

    def map(self, name: str, row: int) -> UInt8[np.ndarray, "tokens row"]:
        """A file of rows, mapped. Raises ValueError if its contents are not those that were written."""
        whole = self._verified(name)
        found = np.memmap(whole, np.uint8, "c") if isinstance(whole, Path) else np.frombuffer(whole, np.uint8)
        return found.reshape(-1, row)

    def begin_to_verify(self, name: str) -> None:
        """Begin to read a file, which `map` will be asked for."""
        with self._lock:
            if name not in self._files:
                self._files[name] = self._hashing.submit(self._whole, name)

    def forget(self, name: str) -> None:
        """Let go of a file that was fetched and will not be mapped."""
        if isinstance(self.folder, RemoteFolder):
            with self._lock:
                self._files.pop(name, None)

    def _whole(self, name: str) -> "Source | None":
        """The file, if it is what was written."""
        if name not in self._manifest.files:
            return None
        if isinstance(self.folder, RemoteFolder):
            folder = self.folder
            content, sha256 = patiently(lambda: folder.fetch(name))
            return content if sha256 == self._manifest.files[name][1] else None
        return self.folder / name if sha256_of(self.folder / name) == self._manifest.files[name][1] else None

    def _verified(self, name: str) -> "Source":
        """The file, once it is known to be whole. What was fetched is here as long as somebody has it."""
        self.begin_to_verify(name)
        with self._lock:
            taken = self._files.pop(name, None) if isinstance(self.folder, RemoteFolder) else self._files[name]
        found = (taken or self._hashing.submit(self._whole, name)).result()
        if found is None:
            raise self._damaged(name)
        return found

    def _damaged(self, name: str) -> ValueError:
        return ValueError(
            f"{self.folder}/{name} is missing or damaged: it is not what the manifest says; write the cache again"
        )


def _sizes(folder: Path | RemoteFolder, names: Iterable[str]) -> dict[str, int]:
    """{path: bytes} of those files that are there."""
    if isinstance(folder, RemoteFolder):
        return folder.sizes()
    return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}


class CachedRows:
    """The activations of one hookpoint in one section, in the order of the cache."""

    def __init__(self, cache: ActivationCache, section: str, hookpoint: str, shards: Sequence[int]) -> None:
        self._cache, self._section, self._hookpoint = cache, section, hookpoint
        self._starts = np.concatenate([[0], np.cumsum(shards)])
        self._row = row_bytes(cache.header.hookpoints[hookpoint], cache.header.dtype)
        self._open: dict[int, UInt8[np.ndarray, "tokens row"]] = {}
        self._ahead: str | None = None
        """Shard that is brought here before it is asked for."""
        self._lock = Lock()

    def read(self, start: int, stop: int) -> Tensor:
        """Activations (stop - start, d_in) on the cache's device. Raises ValueError if it does not hold so many."""
        if stop > self._starts[-1]:
            raise ValueError(
                f"{self._section} of {self._cache.folder} must hold at least {stop} tokens, got {self._starts[-1]}; "
                "write the cache again"
            )
        with self._lock:
            rows = torch.from_numpy(self._copy(start, stop))
        if self._cache.device.type == "cuda":
            rows = rows.pin_memory().to(self._cache.device, non_blocking=True)
        return decode_rows(rows, self._cache.header.dtype)

    def take(self, rows: Int64[np.ndarray, " some"]) -> Tensor:
        """Activations (some, d_in) of any rows; all shards stay mapped. Raises ValueError naming a damaged one."""
        found = np.empty((len(rows), self._row), np.uint8)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        with self._lock:
            for shard in np.unique(shards):
                own = shards == shard
                found[own] = self._mapped(int(shard))[rows[own] - self._starts[shard]]
        return decode_rows(torch.from_numpy(found), self._cache.header.dtype).to(self._cache.device)

    def _copy(self, start: int, stop: int) -> UInt8[np.ndarray, "tokens row"]:
        """Rows start to stop as bytes. A copy, so that the disk is waited for here."""
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        self._open = {shard: mapped for shard, mapped in self._open.items() if first <= shard <= last}
        parts = [
            self._mapped(shard)[max(0, start - self._starts[shard]) : stop - self._starts[shard]]
            for shard in range(first, last + 1)
            if self._starts[shard] < self._starts[shard + 1]
        ]
        return np.concatenate([np.zeros((0, self._row), np.uint8), *parts])

    def _mapped(self, shard: int) -> UInt8[np.ndarray, "tokens row"]:
        if shard not in self._open:
            name, following = (rows_path(self._section, self._hookpoint, number) for number in (shard, shard + 1))
            self._open[shard] = self._cache.map(name, self._row)
            if self._ahead not in (None, name, following):
                self._cache.forget(str(self._ahead))
            if shard + 2 < len(self._starts):
                self._cache.begin_to_verify(following)
                self._ahead = following
        return self._open[shard]


class CachedActivations:
    """An ActivationSource that reads a cache, in the order in which it was written.

    A cache in a live run's order gives the tokens of `batch_size` sequences at a time, without the excluded ones: what
    the live run reads. A shuffled one gives batch_size × ctx_len tokens.
    """

    def __init__(
        self,
        cache: ActivationCache,
        hookpoints: Sequence[str],
        batch_size: int,
        *,
        max_batches: int | None = None,
    ) -> None:
        self._cache, self._batch_size = cache, batch_size
        self._rows = {name: cache.rows(TRAIN, name) for name in hookpoints}
        self._bounds = batch_bounds(cache, TRAIN, batch_size, drop_incomplete=True)
        self._max_batches = max_batches
        self.batch_index = 0
        """How many batches were handed out or skipped."""
        self._last = -1
        """The batch that was handed out last: readers that skip do so evenly, and the reading ahead follows them."""
        readers = [ThreadPoolExecutor(1, thread_name_prefix="cache") for _ in range(min(READERS, len(hookpoints)))]
        self._reader_of = dict(zip(hookpoints, itertools.cycle(readers), strict=False))
        """One thread for a hookpoint: a batch that overtook another would have its shards fetched twice."""
        self._reading: dict[int, dict[str, Future[Tensor]]] = {}

    @property
    def num_batches(self) -> int:
        """How many batches there are in all."""
        batches = len(self._bounds) - 1
        return batches if self._max_batches is None else min(batches, self._max_batches)

    def __iter__(self) -> Iterator[Activations]:
        return self

    def __next__(self) -> Activations:
        """Raises ValueError naming a shard that is damaged."""
        if self.batch_index >= self.num_batches:
            raise StopIteration
        stride, self._last = max(1, self.batch_index - self._last), self.batch_index
        wanted = range(self.batch_index, self.num_batches, stride)[: 1 + AHEAD]
        self._forget(set(self._reading) - set(wanted))
        for index in wanted:
            self._read(index)
        activations = {name: future.result() for name, future in self._reading.pop(self.batch_index).items()}
        self.batch_index += 1
        return activations

    def skip(self) -> int:
        """Pass over the next batch, which somebody else reads; how many tokens it holds."""
        if self.batch_index >= self.num_batches:
            raise StopIteration
        start, stop = self._bounds[self.batch_index :][:2].tolist()
        self.batch_index += 1
        return int(stop - start)

    def _read(self, index: int) -> None:
        """Begin to read a batch, unless it is being read."""
        if index not in self._reading:
            start, stop = self._bounds[index:][:2].tolist()
            self._reading[index] = {
                name: self._reader_of[name].submit(rows.read, start, stop) for name, rows in self._rows.items()
            }

    def _forget(self, batches: Iterable[int]) -> None:
        for index in batches:
            for future in self._reading.pop(index).values():
                future.cancel()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed out, and the cache that it is in."""
        cache = [self._batch_size, self._cache.num_tokens, self._cache.header.seed]
        return {"batch_index": self.batch_index, "cache": cache}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position. Raises ValueError unless the cache and the size of a batch are the same."""
        if state["cache"] != self.state_dict()["cache"]:
            raise ValueError(
                f"[batch_size, tokens and seed] of the cache in {self._cache.folder} must be as they were "
                f"saved, {short(state['cache'])}, got {self.state_dict()['cache']}; resume with the same cache"
            )
        batch_index = count_in(state, "batch_index")
        self._forget(list(self._reading))
        self.batch_index, self._last = batch_index, batch_index - 1


def batch_bounds(
    cache: ActivationCache, section: str, batch_size: int, *, drop_incomplete: bool
) -> Int64[np.ndarray, " bounds"]:
    """Bounds of batches of `batch_size` sequences among the tokens, with an incomplete last one unless dropped."""
    if section == TRAIN and cache.header.shuffled:
        tokens = batch_size * cache.header.ctx_len
        return np.arange(0, cache.num_tokens + 1, tokens)
    if (kept := cache.kept(section)) is None:
        raise ValueError(f"{cache.folder} must hold {section}/{KEPT}, and does not; write the cache again")
    ends = np.concatenate([[0], np.cumsum(kept)])
    bounds = ends[::batch_size]
    return bounds if drop_incomplete or len(kept) % batch_size == 0 else np.append(bounds, ends[-1])


def held_out_batches(cache: ActivationCache, hookpoints: Sequence[str], batch_size: int) -> Iterator[Batch]:
    """The held-out tokens and their activations, in batches of `batch_size` sequences, as a live run measures them."""
    options = cache.header.options
    rows = {name: cache.rows(HELD_OUT, name) for name in hookpoints}
    bounds = batch_bounds(cache, HELD_OUT, batch_size, drop_incomplete=False).tolist()
    for tokens, start, stop in zip(cache.held_out_tokens().split(batch_size), bounds[:-1], bounds[1:], strict=True):
        kept = counted(tokens, options["exclude_tokens"], options["exclude_positions"]).flatten().nonzero().squeeze(1)
        yield Batch(tokens, kept, {name: of_hookpoint.read(start, stop) for name, of_hookpoint in rows.items()})
