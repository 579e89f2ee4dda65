"""The order in which sequences are read, and which of them are held out."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from .hold_out import Split, split
from .position import count_in
from .sequences import Sequences, as_sequences
from .stream import SequenceStream

SHUFFLED, WHOLE_DOCUMENTS, STREAM = "shuffled", "shuffled, whole documents held out", "stream"
"""Kinds of saved positions."""


def order_of(sequences: Any, held_out: int, seed: int, *, whole_documents: bool) -> "ShuffledOrder | StreamOrder":
    source = as_sequences(sequences)
    if isinstance(source, SequenceStream):
        return StreamOrder(source, held_out, whole_documents=whole_documents)
    documents = getattr(source, "documents", None) if whole_documents else None
    return ShuffledOrder(source, split(len(source), held_out, seed, documents), seed)


class ShuffledOrder:
    """A permutation of the sequences that are trained on, and one of those that are held out."""

    def __init__(self, source: Sequences, parts: Split, seed: int) -> None:
        self._source, self._seed, self._parts = source, seed, parts
        self.ctx_len = source.ctx_len
        self.held_out, self.held_out_by, self.num_shared = len(parts.held_out), parts.by, parts.num_shared
        self.num_sequences: int = len(parts.trained)
        self.num_in_all: int | None = len(source)
        """Sequences in all, with the held-out ones and those that their documents leave unused."""
        self.position = 0

    def read_held_out(self, start: int, count: int) -> tuple[Tensor, list[int]]:
        return self._take(self._parts.held_out[start : start + count])

    def read(self, count: int) -> tuple[Tensor, list[int]]:
        return self._take(self._parts.trained[self.position : self.position + count])

    def look_ahead(self, count: int, at_once: int) -> Iterator[Tensor]:
        """The first `count` sequences that are trained on, in batches."""
        return (self._take(part)[0] for part in self._parts.trained[:count].split(at_once))

    def advance(self, count: int) -> None:
        self.position += count

    def _take(self, chosen: Int64[Tensor, " n"]) -> tuple[Tensor, list[int]]:
        indices = chosen.tolist()
        return self._source.take(indices), indices

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": WHOLE_DOCUMENTS if self.held_out_by == "documents" else SHUFFLED,
            "seed": self._seed,
            "num_sequences": self.num_in_all,
            "ctx_len": self.ctx_len,
            "held_out": self.held_out,
            "position": self.position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = count_in(state, "position", self.num_sequences or 0)


class StreamOrder:
    """The stream as it comes; the held-out sequences are its beginning, kept in memory.

    The rest of the document with which they end is passed over, up to their own number.
    """

    num_sequences: int | None = None
    num_in_all: int | None = None

    def __init__(self, source: SequenceStream, held_out: int, *, whole_documents: bool) -> None:
        self._source, self._whole_documents = source, whole_documents
        self.held_out_by = "documents" if whole_documents else "sequences"
        self.held_out = held_out
        self.position = 0

    @property
    def ctx_len(self) -> int:
        return self._source.ctx_len

    @cached_property
    def _held_out_rows(self) -> list[Tensor]:
        """The stream's beginning, read before anything else is."""
        rows = self._source.read(self.held_out)
        if self._whole_documents and rows:
            self._source.skip_document(self.held_out)
        self._source_state = self._source.state_dict()
        return rows

    def read_held_out(self, start: int, count: int) -> tuple[Tensor, list[int]]:
        rows = self._held_out_rows[start : start + count]
        return self._stack(rows), list(range(start, start + len(rows)))

    def read(self, count: int) -> tuple[Tensor, list[int]]:
        self._held_out_rows  # noqa: B018 - they come before
        first = self._source.num_read
        rows = self._source.read(count)
        return self._stack(rows), list(range(first, first + len(rows)))

    def advance(self, count: int) -> None:
        self.position += count
        self._source_state = self._source.state_dict()

    def _stack(self, rows: list[Tensor]) -> Int64[Tensor, "n ctx_len"]:
        return torch.stack(rows) if rows else torch.empty(0, self.ctx_len, dtype=torch.int64)

    def state_dict(self) -> dict[str, Any]:
        num_held_out = len(self._held_out_rows)
        return {
            "kind": STREAM,
            "seed": None,
            "num_sequences": None,
            "ctx_len": self.ctx_len,
            "held_out": num_held_out,
            "position": self.position,
            "place": self._source_state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state["place"])
        self.position, self._source_state = count_in(state, "position"), state["place"]
