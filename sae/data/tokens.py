"""Batches of token sequences: one interface over every source, with a position that can be saved."""

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from sae.storage.files import short

from .hold_out import shared_length, sharing_text
from .order import SHUFFLED, WHOLE_DOCUMENTS, StreamOrder, order_of
from .retry import Wait, patiently
from .sequences import Sequences, as_sequences
from .stream import SequenceStream

HELD_OUT_TOKENS = 65536
HELD_OUT_TOKENS_STREAM = 16384
TOKENS_TO_COMPARE = 1 << 20


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
        self._order = order_of(sequences, held_out, seed, whole_documents=whole_documents)
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
    def num_to_train(self) -> int | None:
        """Sequences that may be trained on; None for a stream."""
        return self._order.num_sequences

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
        if isinstance(order, StreamOrder) or not order.held_out:
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
        self._order = order_of(source, of_documents or count, seed, whole_documents=of_documents is not None)
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
