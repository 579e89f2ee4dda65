"""Events of some sequences, on disk while an index is made. Each chunk is whole or missing; all are merged at last."""

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae.storage.files import write_atomically

from .statistics import Events

EVENTS_AT_ONCE = 2**19
"""Events of a place that are merged in memory together, unless a single latent has more."""
LATENTS_AT_ONCE = 2**16
_HEADER = 8


class Found(NamedTuple):
    """Findings about one dictionary on the tokens of a chunk."""

    events: Events
    massive: np.ndarray
    """1 for each massive token of the chunk, else 0."""


def sort_events(latents: np.ndarray, positions: np.ndarray, values: np.ndarray, num_latents: int) -> Events:
    """Events in the order of their positions, sorted by latent."""
    order = np.argsort((latents & 0xFFFF).astype(np.uint16), kind="stable")  # a radix sort
    if num_latents > 2**16:
        order = order[np.argsort((latents[order] >> 16).astype(np.uint16), kind="stable")]
    return Events(np.bincount(latents, minlength=num_latents), positions[order], values[order])


def write_chunk(path: Path, tokens: np.ndarray, counted: np.ndarray, places: Sequence[Found]) -> None:
    """Write a chunk: its token ids, which of them count, and what each dictionary did on them."""
    arrays = [tokens.astype("<u4").ravel(), counted.astype("u1").ravel()]
    for found in places:
        arrays += [found.events.counts.astype("<u4"), found.events.positions.astype("<u4")]
        arrays += [found.events.values.astype("<f2"), found.massive.astype("u1")]
    content = b"".join(array.tobytes() for array in arrays)
    lengths = [len(array) for array in arrays]
    header = json.dumps({"lengths": lengths, "crc": zlib.crc32(content)}).encode()
    write_atomically(path, len(header).to_bytes(_HEADER, "little") + header + content)


class Chunk:
    """A chunk on disk, mapped into memory."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError if the file was damaged."""
        self._bytes = np.memmap(path, np.uint8, "r")
        end = _HEADER + int.from_bytes(self._bytes[:_HEADER].tobytes(), "little")
        header = json.loads(self._bytes[_HEADER:end].tobytes())
        if zlib.crc32(self._bytes[end:].data) != header["crc"]:
            raise ValueError(f"{path} is damaged")
        kinds = ["<u4", "u1", *(["<u4", "<u4", "<f2", "u1"] * ((len(header["lengths"]) - 2) // 4))]
        self._arrays: list[np.ndarray] = []
        for kind, length in zip(kinds, header["lengths"], strict=True):
            stop = end + length * np.dtype(kind).itemsize
            self._arrays.append(self._bytes[end:stop].view(kind))
            end = stop

    @property
    def tokens(self) -> np.ndarray:
        """Token ids."""
        return self._arrays[0]

    @property
    def counted(self) -> np.ndarray:
        """1 for each token that counts."""
        return self._arrays[1]

    def found(self, place: int) -> Found:
        """What this dictionary did here."""
        counts, positions, values, massive = self._arrays[2 + 4 * place : 6 + 4 * place]
        return Found(Events(counts, positions, values), massive)


def open_chunk(path: Path) -> Chunk | None:
    """The chunk, if it is there and whole."""
    with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        return Chunk(path)
    return None


class Merged:
    """The events of one place in all chunks, in the order of the latents."""

    def __init__(self, parts: Sequence[Events]) -> None:
        """`parts` are in the order of the tokens."""
        self._parts = parts

    @cached_property
    def totals(self) -> np.ndarray:
        """Events of each latent."""
        return np.asarray(np.sum([part.counts for part in self._parts], axis=0, dtype=np.int64))

    def __iter__(self) -> Iterator[Events]:
        """Events of some latents after the other."""
        ends = [np.concatenate([[0], np.cumsum(part.counts, dtype=np.int64)]) for part in self._parts]
        for low, high in ranges(self.totals):
            yield self._range(low, high, ends)

    def _range(self, low: int, high: int, ends: list[np.ndarray]) -> Events:
        counts = self.totals[low:high]
        free = np.cumsum(counts) - counts  # where the next event of each latent goes
        positions, values = np.empty(counts.sum(), np.uint32), np.empty(counts.sum(), np.float16)
        for part, end in zip(self._parts, ends, strict=True):
            own = part.counts[low:high].astype(np.int64)
            starts = end[low:high] - end[low]
            to = np.arange(own.sum()) + np.repeat(free - starts, own)
            positions[to] = part.positions[end[low] : end[high]]
            values[to] = part.values[end[low] : end[high]]
            free = free + own
        return Events(counts, positions, values)


def ranges(totals: np.ndarray) -> Iterator[tuple[int, int]]:
    """Latents that are merged together: at most EVENTS_AT_ONCE events and LATENTS_AT_ONCE latents, at least one."""
    ends, low = np.cumsum(totals), 0
    while low < len(totals):
        before = ends[low - 1] if low else 0
        high = int(np.searchsorted(ends, before + EVENTS_AT_ONCE, "right"))
        high = max(low + 1, min(high, low + LATENTS_AT_ONCE))
        yield low, high
        low = high
