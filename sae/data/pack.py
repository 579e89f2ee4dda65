"""Cutting a stream of tokens into chunks of one length, without losing any token on the way."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Integer

if TYPE_CHECKING:
    import datasets
    import pyarrow

DOCUMENTS_PER_BATCH = 256  # bounds the memory of one step of packing; the result does not depend on it
STREAMED_DOCUMENTS_PER_BATCH = 64

FIRST, LAST = "first_document", "last_document"
"""Columns of packed rows: the numbers of the documents with which a row begins and ends."""

Row = dict[str, Any]


@dataclass(frozen=True)
class ChunkLayout:
    """A chunk is prefix + body + suffix, `size` tokens in all; bodies follow one another in the stream of tokens."""

    size: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    # part of the key under which `datasets` caches packed rows: raise it when the same input must give other rows
    version: int = 2

    def __post_init__(self) -> None:
        if self.body_size < 1:
            num_special = len(self.prefix) + len(self.suffix)
            raise ValueError(
                f"max_seq_len must be larger than the tokenizer's {num_special} special tokens per chunk, "
                f"got {self.size}; raise max_seq_len (--ctx_len)"
            )

    @property
    def body_size(self) -> int:
        return self.size - len(self.prefix) - len(self.suffix)

    def cut(
        self, tokens: Integer[np.ndarray, " tokens"]
    ) -> tuple[Integer[np.ndarray, "chunks size"], Integer[np.ndarray, " rest"]]:
        """All whole chunks of `tokens`, and the tokens after the last whole chunk."""
        num_chunks = len(tokens) // self.body_size
        used = num_chunks * self.body_size
        return self.wrap(tokens[:used].reshape(num_chunks, self.body_size)), tokens[used:]

    def wrap(self, bodies: Integer[np.ndarray, "chunks body"]) -> Integer[np.ndarray, "chunks size"]:
        """Give every body its prefix and suffix; bodies may be shorter than `body_size`."""
        ends = [np.tile(np.asarray(end, bodies.dtype), (len(bodies), 1)) for end in (self.prefix, self.suffix)]
        return np.concatenate([ends[0], bodies, ends[1]], axis=1)

    def last(self, rest: Integer[np.ndarray, " rest"]) -> Integer[np.ndarray, " row"]:
        """The last, shorter chunk. A suffix that a closed chat carries itself is not doubled."""
        size = len(self.suffix)
        closed = 0 < size < len(rest) and tuple(rest[-size:].tolist()) == self.suffix
        return self.wrap(rest[None, : len(rest) - size * closed])[0]


def pack_dataset(
    documents: "datasets.Dataset", layout: ChunkLayout, *, keep_partial: bool = False, use_cache: bool = True
) -> "datasets.Dataset":
    """Rows of `layout.size` tokens from the rows of `documents`, whose one column is `input_ids` (any lengths).

    Runs in one process, in order, so that nothing is lost between batches. Only the tokens after the last whole chunk
    are dropped; with `keep_partial` they become a last, shorter row. The columns FIRST and LAST say which documents a
    row holds.
    """
    from datasets import Features, List, Value

    return documents.with_format("arrow").map(
        _Packer(layout, num_documents=len(documents), keep_partial=keep_partial),
        batched=True,
        batch_size=DOCUMENTS_PER_BATCH,
        with_indices=True,
        features=Features(
            {"input_ids": List(documents.features["input_ids"].feature), FIRST: Value("int64"), LAST: Value("int64")}
        ),
        load_from_cache_file=use_cache,
        desc="Packing",
    )


class _Packer:
    """One pass over batches of documents; what does not fill a chunk waits for the next batch."""

    def __init__(self, layout: ChunkLayout, *, num_documents: int, keep_partial: bool) -> None:
        self.layout = layout
        self.num_documents = num_documents
        self.keep_partial = keep_partial
        self.rest: list[int] = []
        self.owners: list[int] = []
        """The document of each token of the rest."""

    def __call__(self, table: "pyarrow.Table", indices: list[int]) -> "pyarrow.Table":
        import pyarrow as pa
        import pyarrow.compute as pc

        column = table["input_ids"]
        tokens = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        owners = np.repeat(indices, pc.list_value_length(column).fill_null(0).to_numpy())
        chunks, rest = self.layout.cut(np.concatenate([np.asarray(self.rest, tokens.dtype), tokens]))
        starts, ends, rest_owners = self._documents(np.concatenate([np.asarray(self.owners, np.int64), owners]))
        self.rest, self.owners = rest.tolist(), rest_owners.tolist()
        rows = list(chunks)
        if self.keep_partial and len(rest) and indices[-1] == self.num_documents - 1:
            rows.append(self.layout.last(rest))
            starts, ends = np.append(starts, rest_owners[0]), np.append(ends, rest_owners[-1])
        ids = pa.array(rows, type=pa.list_(column.type.value_type))
        return pa.table({"input_ids": ids, FIRST: pa.array(starts, pa.int64()), LAST: pa.array(ends, pa.int64())})

    def _documents(
        self, owners: Integer[np.ndarray, " tokens"]
    ) -> tuple[Integer[np.ndarray, " chunks"], Integer[np.ndarray, " chunks"], Integer[np.ndarray, " rest"]]:
        """The first and last document of each whole chunk, and those of the tokens after it."""
        used = len(owners) // self.layout.body_size * self.layout.body_size
        of_chunks = owners[:used].reshape(-1, self.layout.body_size)
        return of_chunks[:, 0], of_chunks[:, -1], owners[used:]


class PackedStream:
    """An `IterableDataset` of documents as a stream of rows `{"input_ids": ...}` of `layout.size` tokens.

    `state_dict` is the position after the row yielded last: going back there tokenises nothing before it. As with
    `IterableDataset`, iterating starts at the loaded position, or at the beginning; iterate once at a time.
    """

    column_names = ["input_ids"]

    def __init__(
        self,
        documents: "datasets.IterableDataset",
        tokens_of: Callable[[list[Row]], list[list[int]]],
        layout: ChunkLayout,
        *,
        format: str | None = None,
        keep_partial: bool = False,
    ) -> None:
        self._documents = own_view(documents)
        self._tokens_of = tokens_of
        self._layout = layout
        self._convert = _row_converter(format)
        self._keep_partial = keep_partial
        self._start: dict[str, Any] = {"documents": self._documents.state_dict(), "rest": [], "num_rows": 0}
        self._position = self._start

    @property
    def epoch(self) -> int:
        """The epoch of the documents, which with the seed of a shuffle chooses their order."""
        return int(self._documents.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the documents for the passes that come."""
        self._documents.set_epoch(epoch)

    def with_format(self, format: str | None) -> "PackedStream":
        """This stream from the beginning, with rows as tensors ("torch"), arrays ("numpy") or lists (None)."""
        return PackedStream(
            self._documents, self._tokens_of, self._layout, format=format, keep_partial=self._keep_partial
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values: position in the documents before the last batch, tokens then waiting, rows since."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start = self._position = dict(state)

    def __iter__(self) -> Iterator[Row]:
        skip = self._start["num_rows"]
        for position, rows in self._batches():
            for num_rows, row in enumerate(rows[skip:], start=skip + 1):
                self._position = position | {"num_rows": num_rows}
                yield row | {"input_ids": self._convert(row["input_ids"])}
            skip = 0

    def _batches(self) -> Iterator[tuple[dict[str, Any], list[Row]]]:
        """The rows that each batch of documents completes, with the position before that batch."""
        rest, owners, num_documents = self._start["rest"], np.full(len(self._start["rest"]), -1), 0
        documents_state = self._start["documents"]
        self._documents.load_state_dict(documents_state)
        documents = iter(self._documents)
        while True:
            batch = list(islice(documents, STREAMED_DOCUMENTS_PER_BATCH))
            texts = [np.asarray(ids, np.int64) for ids in self._tokens_of(batch)]
            tokens = np.concatenate([np.asarray(rest, np.int64), *texts])
            owners = np.concatenate([owners, np.repeat(num_documents + np.arange(len(texts)), list(map(len, texts)))])
            num_documents += len(texts)
            chunks, tail = self._layout.cut(tokens)
            is_last = len(batch) < STREAMED_DOCUMENTS_PER_BATCH
            last_row = [self._layout.last(tail)] if is_last and self._keep_partial and len(tail) else []
            yield {"documents": documents_state, "rest": rest}, self._rows([*chunks, *last_row], owners)
            if is_last:
                return
            rest, owners = tail.tolist(), owners[len(owners) - len(tail) :]
            documents_state = self._documents.state_dict()

    def _rows(self, chunks: list[np.ndarray], owners: Integer[np.ndarray, " tokens"]) -> list[Row]:
        """Chunks with the documents that they are of; their numbers count from where reading began."""
        size = self._layout.body_size
        ends = [(index * size, min((index + 1) * size, len(owners)) - 1) for index in range(len(chunks))]
        return [
            {"input_ids": chunk, FIRST: int(owners[first]), LAST: int(owners[last])}
            for chunk, (first, last) in zip(chunks, ends, strict=True)
        ]


def own_view(stream: Any) -> Any:
    """The rows of an `IterableDataset` or `PackedStream` from the beginning, with their own position.

    Loading a position into it leaves the caller's object where it was.
    """
    view = stream.with_format(None)
    if hasattr(stream, "epoch"):
        view.set_epoch(stream.epoch)
    return view


def keeps_its_place(stream: Any) -> bool:
    """Whether the `state_dict` of an `IterableDataset` or `PackedStream` is exact.

    `datasets` forgets the rows that wait in a shuffle buffer: they would be lost.
    """
    waiting = [getattr(getattr(stream, "_documents", stream), "_ex_iterable", None)]
    while waiting:
        rows = waiting.pop()
        if type(rows).__name__ == "BufferShuffledExamplesIterable":
            return False
        if rows is not None:
            waiting += [getattr(rows, "ex_iterable", None), *getattr(rows, "ex_iterables", [])]
    return True


def _row_converter(format: str | None) -> Callable[[np.ndarray], Any]:
    if format in ("torch", "pt"):
        import torch

        return torch.from_numpy
    if format in ("numpy", "np"):
        return np.asarray
    if format in (None, "python"):
        return np.ndarray.tolist
    raise ValueError(f"format of a stream must be torch, numpy or None, got {format!r}; pass format='torch'")
