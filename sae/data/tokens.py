"""Batches of token sequences: one interface over every source, with a position that can be saved."""

import copy
import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sae.storage.files import short

from .hold_out import Documents, Split, shared_length, sharing_text, split
from .ids import as_ids, has_padding, ids_column, is_empty, joined_without_padding, row_ids, without_empty_rows
from .pack import FIRST, LAST, keeps_its_place, own_view
from .position import count_in
from .read import IDS, MASK
from .retry import Wait, patiently

HELD_OUT_TOKENS = 65536
HELD_OUT_TOKENS_STREAM = 16384
TOKENS_TO_COMPARE = 1 << 20
SHUFFLED, WHOLE_DOCUMENTS, STREAM = "shuffled", "shuffled, whole documents held out", "stream"
"""Kinds of saved positions."""


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
            _check_length(index, len(row), self.ctx_len)
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
            _check_length(self.num_read + len(sequences), len(ids), ctx_len)
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


def held_out_count(num_sequences: int | None, batch_size: int, ctx_len: int) -> int:
    """How many sequences to set aside for measuring; `num_sequences` is None for a stream.

    A hundredth, but at least a batch, at most 65536 tokens, at most a tenth of the data, and never less than one
    sequence. 16384 tokens of a stream.
    """
    if num_sequences is None:
        return max(1, HELD_OUT_TOKENS_STREAM // ctx_len)
    wanted = max(num_sequences // 100, batch_size)
    return max(1, min(wanted, HELD_OUT_TOKENS // ctx_len, num_sequences // 10))


class TokenBatches:
    """Iterates over batches (batch_size, ctx_len) of int64 token ids, once, from a position that can be saved.

    Random access sources are read in an order drawn from `seed`, streams in their own; neither depends on the batch
    size. `held_out` sequences are never trained on: `held_out_batches()` gives them. With `whole_documents` nothing of
    their documents is trained on, as far as that is possible and the documents are known. Else they are the first of
    that order. An incomplete last batch is dropped. `max_batches` counts from the start of the data, resumed or not. A
    source that fails for a while is tried again (`retry.patiently`), with `wait` in between.

    Raises ValueError if the data is less than one batch, and, when such a batch comes up, if a token is outside
    [0, vocab_size).
    """

    def __init__(
        self,
        sequences: Any,
        batch_size: int,
        *,
        seed: int,
        vocab_size: int | None = None,
        held_out: int = 0,
        whole_documents: bool = True,
        max_batches: int | None = None,
        wait: Wait = time.sleep,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}; raise --batch_size")
        self.batch_size = batch_size
        self.vocab_size = vocab_size
        self.max_batches = max_batches
        self._wait = wait
        self._order = _order_of(sequences, held_out, seed, whole_documents=whole_documents)
        if self._order.num_sequences is not None and self._order.num_sequences < batch_size:
            raise self._too_few(self._order.num_sequences)

    @property
    def ctx_len(self) -> int:
        return self._order.ctx_len

    @property
    def held_out(self) -> int:
        """How many sequences are held out; of a stream at most."""
        return self._order.held_out

    @property
    def num_sequences(self) -> int | None:
        """Sequences of the data, with those held out; None for a stream."""
        return self._order.num_in_all

    @property
    def held_out_by(self) -> str:
        """Kind of what is held out: `documents`, or `sequences` whatever their documents."""
        return self._order.held_out_by

    @property
    def num_batches(self) -> int | None:
        """Batches in the whole pass, those already handed out included; of a stream `max_batches` at most, or None."""
        if self._order.num_sequences is None:
            return self.max_batches
        num_batches = self._order.num_sequences // self.batch_size
        return num_batches if self.max_batches is None else min(num_batches, self.max_batches)

    def held_out_batches(self) -> Iterator[Int64[Tensor, "batch ctx_len"]]:
        """The held-out sequences in batches of `batch_size`, the last one as small as it comes."""
        for start in range(0, self._order.held_out, self.batch_size):
            read = partial(self._order.read_held_out, start, self.batch_size)
            yield check_tokens(*patiently(read, self._wait), self.vocab_size)

    def fingerprint(self) -> str:
        """Fingerprint of the held-out sequences."""
        return fingerprint(self.held_out_batches())

    def about_held_out(self) -> list[str]:
        """Sentences on how many held-out sequences stand in the training text too. Reads a million tokens."""
        order = self._order
        if isinstance(order, _StreamOrder) or not order.held_out:
            return []
        told = [
            f"{order.num_shared} of the {order.held_out} held-out sequences are of documents that are trained on too, "
            "which are long for so little data"
        ] * bool(order.num_shared)
        count = min(order.num_sequences, max(1, TOKENS_TO_COMPARE // self.ctx_len))
        alike = sharing_text(order.read_held_out(0, order.held_out)[0], order.look_ahead(count, self.batch_size))
        length = shared_length(self.ctx_len)
        among = "sequences" if count == order.num_sequences else f"first {count:,} sequences"
        return told + [
            f"{alike} of the {order.held_out} held-out sequences share {length} tokens in a row with the {among} "
            "that are trained on: the data repeats itself, and measures on them are better than on new text"
        ] * bool(alike)

    def __iter__(self) -> "TokenBatches":
        return self

    def __next__(self) -> Int64[Tensor, "batch_size ctx_len"]:
        end = self._order.position + self.batch_size
        if self.max_batches is not None and end > self.max_batches * self.batch_size:
            raise StopIteration
        tokens, indices = patiently(lambda: self._order.read(self.batch_size), self._wait)
        if len(indices) < self.batch_size:
            if end == self.batch_size:
                raise self._too_few(len(indices))
            raise StopIteration
        batch = check_tokens(tokens, indices, self.vocab_size)
        self._order.advance(self.batch_size)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed out, in sequences; plain values only."""
        return patiently(self._order.state_dict, self._wait)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position. Raises ValueError unless data, seed and held-out set are those it was saved with."""
        own = self.state_dict()
        if state.get("kind") == SHUFFLED and own["kind"] == WHOLE_DOCUMENTS:
            raise ValueError(
                "the token batches hold out whole documents, and when the state was saved an earlier version held out "
                "single sequences; begin anew, or continue with whole_documents=False"
            )
        for name in ("kind", "num_sequences", "ctx_len", "held_out", "seed"):
            if state.get(name) != own[name]:
                raise ValueError(
                    f"{name} of the token batches must be what it was when the state was saved "
                    f"({short(state.get(name))}), got {own[name]}; resume with the same data, --seed and --ctx_len"
                )
        patiently(lambda: self._order.load_state_dict(state), self._wait)

    def _too_few(self, num_sequences: int) -> ValueError:
        return ValueError(
            f"the data must have at least one batch of batch_size={self.batch_size} sequences after the "
            f"{self._order.held_out} held out, got {num_sequences}; pass more text, or lower --batch_size or --ctx_len"
        )


class SampledSequences:
    """Some sequences of the data in batches (batch_size, ctx_len), the last as small as it comes; as often as wanted.

    They are those that training with this seed holds out, or would hold out if it needed so many; of a stream the
    first. `of_documents` is the number of sequences of a run that held out whole documents.
    """

    def __init__(
        self,
        sequences: Any,
        max_tokens: int | None,
        batch_size: int,
        *,
        seed: int,
        vocab_size: int | None = None,
        of_documents: int | None = None,
    ) -> None:
        """`max_tokens` None takes all of the data. Raises ValueError for less than one sequence."""
        source = as_sequences(sequences)
        self.ctx_len = source.ctx_len
        self._batch_size, self._vocab_size = batch_size, vocab_size
        count = sys.maxsize if max_tokens is None else max_tokens // source.ctx_len
        if not count:
            raise ValueError(
                f"max_tokens must be at least one sequence of ctx_len={source.ctx_len} tokens, got {max_tokens}; "
                "raise --max_tokens or lower --ctx_len"
            )
        self._order = _order_of(source, of_documents or count, seed, whole_documents=of_documents is not None)
        self._count = min(count, self._order.held_out)

    @property
    def num_tokens(self) -> int:
        """Number of their tokens; for a stream an upper bound."""
        return self._count * self.ctx_len

    def __iter__(self) -> Iterator[Int64[Tensor, "batch ctx_len"]]:
        """Raises ValueError for a token outside [0, vocab_size)."""
        for start in range(0, self._count, self._batch_size):
            tokens, indices = self._order.read_held_out(start, min(self._batch_size, self._count - start))
            if not indices:
                return
            yield check_tokens(tokens, indices, self._vocab_size)


def fingerprint(batches: Iterable[Int64[Tensor, "batch ctx_len"]]) -> str:
    """Fingerprint of these sequences in their order; how they are cut into batches does not matter."""
    digest = hashlib.sha256()
    for tokens in batches:
        digest.update(tokens.cpu().contiguous().numpy().astype("<i8").tobytes())
    return f"tokens-{digest.hexdigest()[:32]}"


def held_out_fingerprint(
    source: "Sequences | SequenceStream", held_out: int, seed: int, *, whole_documents: bool
) -> str:
    """Fingerprint of the sequences that a run with this seed holds out, if they are so many. A stream is rewound."""
    position = source.state_dict() if isinstance(source, SequenceStream) else None
    of_documents = held_out if whole_documents else None
    sample = SampledSequences(source, held_out * source.ctx_len, batch_size=64, seed=seed, of_documents=of_documents)
    found = fingerprint(sample)
    if isinstance(source, SequenceStream) and position is not None:
        source.load_state_dict(position)
    return found


def check_tokens(
    tokens: Int64[Tensor, "batch ctx_len"], indices: list[int], vocab_size: int | None
) -> Int64[Tensor, "batch ctx_len"]:
    """The tokens of the sequences `indices`. Raises ValueError unless all are in [0, vocab_size)."""
    limit = vocab_size if vocab_size is not None else torch.iinfo(torch.int64).max
    wrong = (tokens < 0) | (tokens >= limit)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        rule = "at least 0" if vocab_size is None else f"at least 0 and below the vocabulary size {limit}"
        raise ValueError(
            f"tokens must be {rule}, got {tokens[row, column].item()} in sequence {indices[row]}; "
            "tokenise with this model's tokenizer"
        )
    return tokens


def _order_of(sequences: Any, held_out: int, seed: int, *, whole_documents: bool) -> "_ShuffledOrder | _StreamOrder":
    source = as_sequences(sequences)
    if isinstance(source, SequenceStream):
        return _StreamOrder(source, held_out, whole_documents=whole_documents)
    documents = getattr(source, "documents", None) if whole_documents else None
    return _ShuffledOrder(source, split(len(source), held_out, seed, documents), seed)


class _ShuffledOrder:
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


class _StreamOrder:
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


def _check_length(index: int, length: int, ctx_len: int) -> None:
    if length != ctx_len:
        raise ValueError(
            f"all rows of input_ids must be {ctx_len} tokens long like the first, got {length} in row {index}; "
            "pack them with chunk_and_tokenize"
        )
