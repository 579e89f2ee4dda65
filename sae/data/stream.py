"""Token sequences that come one after the other, and the position in them."""

import copy
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from .ids import check_length, is_empty, row_ids
from .pack import FIRST, LAST, keeps_its_place, own_view
from .position import count_in


class SequenceStream:
    """Token sequences that can only be read one after the other, and the position in them.

    `rows` yields mappings with `input_ids`. The rows' own `state_dict` keeps the position where it is exact:
    `datasets.IterableDataset` without a shuffle buffer, `PackedStream`. Else it is found again by reading up to it. The
    epoch that was set on such rows belongs to the position: it chooses their order. A `read` that raises changes
    nothing, so that it can be tried again.
    """

    def __init__(self, rows: Iterable[Any]) -> None:
        has_place = hasattr(rows, "state_dict") and hasattr(rows, "load_state_dict")
        self._rows: Any = own_view(rows) if has_place else rows
        self._can_resume = has_place and keeps_its_place(rows)
        self._position: dict[str, Any] = {"num_read": 0, "rows": self._rows_state()}
        self._iterator: Iterator[Any] | None = None
        """The rows from `_position` on; None until they are read, and after an error."""
        self._num_opened = 0
        self._last_document: int | None = None
        """The document with which the last sequence that was read ended, if the rows say it; not part of the position.
        """

    @property
    def num_read(self) -> int:
        """How many sequences were read."""
        return self._position["num_read"]

    @cached_property
    def ctx_len(self) -> int:
        """The length of the first row, which must exist."""
        iterator = self._open()
        first = next(iterator, None)
        if first is None:
            raise ValueError(
                "a stream of tokens must have at least one row, got none; pass more text or lower --ctx_len"
            )
        self._iterator = chain([first], iterator)
        return len(row_ids(first))

    def read(self, count: int) -> list[Int64[Tensor, " ctx_len"]]:
        """The next `count` sequences, fewer at the end."""
        ctx_len = self.ctx_len
        iterator, self._iterator = self._iterator or self._open(), None
        sequences: list[Tensor] = []
        last_document = self._last_document
        for row in islice(iterator, count):
            ids, last_document = row_ids(row), row.get(LAST)
            # a shorter row is the stream's last (`return_final_batch`), or else an error
            if len(ids) < ctx_len and next(iterator, None) is None:
                break
            check_length(self.num_read + len(sequences), len(ids), ctx_len)
            sequences.append(torch.from_numpy(ids))
        if sequences:
            self._position = {"num_read": self.num_read + len(sequences), "rows": self._rows_state()}
            self._last_document = last_document
        self._iterator = iterator
        return sequences

    def skip_document(self, most: int) -> None:
        """Pass over sequences that hold some of the document with which the last one ended, `most` of them."""
        iterator, self._iterator = self._iterator or self._open(), None
        for _ in range(most if self._last_document is not None else 0):
            if (row := next(iterator, None)) is None:
                break
            if row[FIRST] > self._last_document:
                iterator = chain([row], iterator)
                break
            self._position = {"num_read": self.num_read + 1, "rows": self._rows_state()}
        self._iterator = iterator

    def state_dict(self) -> dict[str, Any]:
        """The position after the last sequence that was read."""
        epoch = getattr(self._rows, "epoch", None)
        return dict(self._position) if epoch is None else {**self._position, "epoch": epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of a `state_dict`, in its epoch."""
        count_in(state, "num_read")
        self._enter_epoch(state)
        self.ctx_len  # noqa: B018 - from the first row, while we stand at the beginning
        if not self._can_resume and state["num_read"] >= self.num_read:
            while self.num_read < state["num_read"] and self.read(1):
                pass
            return
        self._position, self._iterator = {name: state[name] for name in ("num_read", "rows")}, None
        if not self._can_resume:
            self._iterator = self._open()

    def _enter_epoch(self, state: dict[str, Any]) -> None:
        """Start the rows anew in the epoch of a position, if it is another one; earlier versions did not keep it."""
        epoch = getattr(self._rows, "epoch", None)
        if epoch is None or "epoch" not in state or count_in(state, "epoch") == epoch:
            return
        self._rows.set_epoch(state["epoch"])
        self._position, self._iterator = {"num_read": 0, "rows": self._rows_state()}, None

    def _open(self) -> Iterator[Any]:
        """The rows from `_position` on."""
        if self._can_resume:
            self._rows.load_state_dict(copy.deepcopy(self._position["rows"]))
            return _present(self._rows)
        iterator = iter(self._rows)
        if iterator is self._rows and self._num_opened:
            raise ValueError(
                f"a stream that can be read only once can only go forward, got a way back to sequence {self.num_read}, "
                "as after an error; pass a datasets.IterableDataset, or an object whose __iter__ starts anew"
            )
        self._num_opened += 1
        return islice(_present(iterator), self.num_read, None)

    def _rows_state(self) -> Any:
        return self._rows.state_dict() if self._can_resume else None


def _present(rows: Iterable[Any]) -> Iterator[Any]:
    return (row for row in rows if not is_empty(row))
