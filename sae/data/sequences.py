"""Token sequences of one length in any order, whatever holds them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from .hold_out import Documents
from .ids import (
    as_ids,
    check_length,
    has_padding,
    ids_column,
    joined_without_padding,
    row_ids,
    without_empty_rows,
)
from .pack import FIRST, LAST
from .read import IDS, MASK
from .stream import SequenceStream


@runtime_checkable
class Sequences(Protocol):
    """Token sequences of one length that can be read in any order."""

    @property
    def ctx_len(self) -> int: ...

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> Int64[Tensor, "n ctx_len"]: ...


class TensorSequences:
    """The rows of a tensor (n, ctx_len)."""

    def __init__(self, tokens: Tensor) -> None:
        if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
            raise ValueError(
                "a tensor of tokens must be (sequences, ctx_len), whole numbers, not empty, "
                f"got {tuple(tokens.shape)} of {tokens.dtype}; reshape it or pass a tokenised data set"
            )
        self._tokens = tokens
        self.ctx_len = tokens.shape[1]

    def __len__(self) -> int:
        return len(self._tokens)

    def take(self, indices: Sequence[int]) -> Int64[Tensor, "n ctx_len"]:
        return self._tokens[torch.as_tensor(indices, dtype=torch.int64)].to("cpu", torch.int64)


class RowSequences:
    """The `input_ids` of a data set's rows: a `datasets.Dataset`, or anything with len() and rows by number.

    All rows are as long as the first. A shorter last row (`return_final_batch`) is left out; another length anywhere
    else raises ValueError when it is read.
    """

    def __init__(self, rows: Any) -> None:
        if not len(rows):
            raise ValueError("a tokenised data set must have at least one row, got none; pass more text")
        self._fetch = _row_fetcher(rows)
        first, last = (as_ids(self._fetch([index])[0]) for index in (0, len(rows) - 1))
        self.ctx_len = len(first)
        self._num_rows = len(rows) - (len(last) < len(first))
        self._documents = _document_reader(rows)

    def __len__(self) -> int:
        return self._num_rows

    @cached_property
    def documents(self) -> Documents | None:
        """Which documents each row holds; None if the rows do not say it."""
        return self._documents and Documents(*(ends[: self._num_rows] for ends in self._documents()))

    def take(self, indices: Sequence[int]) -> Int64[Tensor, "n ctx_len"]:
        if not len(indices):
            return torch.empty(0, self.ctx_len, dtype=torch.int64)
        rows = [as_ids(row) for row in self._fetch(list(indices))]
        for index, row in zip(indices, rows, strict=True):
            check_length(index, len(row), self.ctx_len)
        return torch.from_numpy(np.stack(rows))


class PiecedSequences:
    """Every sequence of `rows` cut into pieces of `ctx_len` tokens; the rest of a row is left out."""

    def __init__(self, rows: Sequences, ctx_len: int) -> None:
        self._rows = rows
        self._pieces_per_row = rows.ctx_len // ctx_len
        self.ctx_len = ctx_len

    def __len__(self) -> int:
        return len(self._rows) * self._pieces_per_row

    def take(self, indices: Sequence[int]) -> Int64[Tensor, "n ctx_len"]:
        row, piece = np.divmod(np.asarray(indices, np.int64), self._pieces_per_row)
        used = self._rows.take(row.tolist())[:, : self._pieces_per_row * self.ctx_len]
        pieces = used.unflatten(1, (self._pieces_per_row, self.ctx_len))
        return pieces[torch.arange(len(row)), torch.from_numpy(piece)]


def as_sequences(dataset: Any) -> Sequences | SequenceStream:
    """Sequences for `TokenBatches`, from whatever holds token ids.

    Random access: a `Sequences` (MemmapTokens), a tensor or array (n, ctx_len), a tokenised `datasets.Dataset`, or what
    a tokenizer returns. Any object with len() and rows `{"input_ids": ...}` by number will do. A stream:
    `datasets.IterableDataset`, or any iterable of such rows. Where the `attention_mask` of a data set leaves tokens
    out, its rows are joined without them. Rows that are null or empty are passed over. Raises ValueError for anything
    else, naming the columns that there are.
    """
    if isinstance(dataset, (SequenceStream, Sequences)):
        return dataset
    if isinstance(dataset, np.ndarray):
        return TensorSequences(torch.from_numpy(dataset))
    if isinstance(dataset, Tensor):
        return TensorSequences(dataset)
    if isinstance(dataset, Mapping) and not set(IDS).isdisjoint(dataset):
        return as_sequences(_as_dataset(dataset))
    if isinstance(dataset, Mapping):
        raise ValueError(
            f"dataset must be one split, got several ({', '.join(map(str, dataset))}); pick one: dataset['train']"
        )
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, str):
        names = getattr(dataset, "column_names", None) or ()
        has_ids = len(dataset) and not set(IDS).isdisjoint(names)
        dataset = without_empty_rows(dataset) if has_ids and hasattr(dataset, "with_format") else dataset
        padded = has_ids and MASK in names and has_padding(dataset)
        return RowSequences(joined_without_padding(dataset) if padded else dataset)
    if isinstance(dataset, Iterable) and not isinstance(dataset, str):
        if (names := getattr(dataset, "column_names", None)) is not None:
            ids_column(names)
        return SequenceStream(dataset)
    raise ValueError(
        f"dataset must hold token sequences, got {type(dataset).__name__}; pass the result of chunk_and_tokenize"
    )


def _as_dataset(encoded: Mapping[str, Any]) -> Any:
    """What a tokenizer returns, as rows."""
    from datasets import Dataset

    columns = [name for name in (*IDS, MASK) if name in encoded]
    return Dataset.from_dict({name: [as_ids(row) for row in encoded[name]] for name in columns})


def _document_reader(rows: Any) -> Callable[[], list[np.ndarray]] | None:
    """A function to the documents with which rows begin and end; None if they do not say it."""
    if not {FIRST, LAST} <= set(getattr(rows, "column_names", None) or ()):
        return None
    view = rows.with_format("numpy", columns=[FIRST, LAST])
    return lambda: [np.asarray(view[:][name], np.int64) for name in (FIRST, LAST)]


def _row_fetcher(rows: Any) -> Callable[[list[int]], Sequence[Any]]:
    """A function from indices to the token ids of these rows."""
    column_names = getattr(rows, "column_names", None)
    if column_names is None:
        return lambda indices: [row_ids(rows[index]) for index in indices]
    name = ids_column(column_names)
    view = rows.with_format("numpy", columns=[name])
    return lambda indices: view[indices][name]
