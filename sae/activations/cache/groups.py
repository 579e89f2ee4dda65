"""Batches that reach the disk together: each process runs the language model on its share, and all know all tokens."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from sae.activations.cache.format import encode_rows
from sae.activations.source import Batch
from sae.activations.workers import Workers

Next = Callable[[bool], "ReadBatch | None"]
"""The next batch, None at the end; with its rows if the argument says that they are this process's to make."""


class ReadBatch(NamedTuple):
    """One batch of tokens, and its rows if this process makes them."""

    tokens: Int[Tensor, "sequences ctx_len"]
    kept: Int64[Tensor, " sequences"]
    """How many tokens of each sequence count."""
    rows: dict[str, Tensor]
    """{hookpoint: (tokens, row_bytes)}; empty if another process makes them."""

    @classmethod
    def of(cls, batch: Batch, dtype: str) -> "ReadBatch":
        """A batch whose activations this process has."""
        rows = {name: encode_rows(acts, dtype) for name, acts in batch.activations.items()}
        return cls(batch.tokens, _per_sequence(batch.tokens, batch.kept), rows)

    @classmethod
    def without_rows(cls, tokens: Int[Tensor, "sequences ctx_len"], kept: Int[Tensor, " kept"]) -> "ReadBatch":
        """A batch whose rows another process makes; `kept` are the positions of the flattened tokens that count."""
        return cls(tokens, _per_sequence(tokens, kept), {})


def _per_sequence(tokens: Int[Tensor, "sequences ctx_len"], kept: Int[Tensor, " kept"]) -> Int64[Tensor, " sequences"]:
    return torch.bincount(kept // tokens.shape[1], minlength=len(tokens))


class Group(NamedTuple):
    """Batches after each other, of which this process made a part."""

    section: str
    done: int
    """How many batches of the section come before."""
    batches: list[ReadBatch]
    own: range
    """Which of them have rows here, by their places in the list."""
    asked: int
    """How many batches were shared out; at the end of the data there may be fewer."""

    @property
    def counts(self) -> Int64[np.ndarray, " batches"]:
        """Tokens that count in each batch."""
        return np.array([int(batch.kept.sum()) for batch in self.batches], np.int64)

    @property
    def own_tokens(self) -> slice:
        """Which of the tokens that count have rows here."""
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        return slice(int(ends[self.own.start]), int(ends[self.own.stop]))

    def rows(self, hookpoint: str) -> Tensor:
        """The rows that are here (tokens, row_bytes)."""
        return torch.cat([self.batches[place].rows[hookpoint] for place in self.own])

    def kept(self) -> Int64[Tensor, " sequences"]:
        """How many tokens of each sequence count."""
        return torch.cat([batch.kept for batch in self.batches])

    def tokens(self) -> Int[Tensor, "sequences ctx_len"]:
        """Token ids of all batches."""
        return torch.cat([batch.tokens for batch in self.batches])

    def sequences(self) -> Int64[Tensor, " batches"]:
        """Sequences of each batch."""
        return torch.tensor([len(batch.kept) for batch in self.batches])


def share(total: int, rank: int, size: int) -> range:
    """The share of one of `size` processes in so many batches: neighbours, and as many as the others', or one more."""
    return range(total * rank // size, total * (rank + 1) // size)


def shards_with_rows(lengths: dict[str, list[int]], hookpoints: Iterable[str]) -> list[tuple[str, str, int, int]]:
    """(section, hookpoint, shard, tokens) of all files of rows that are not empty; `lengths` are tokens by section."""
    return [
        (section, hookpoint, shard, tokens)
        for section, of_section in lengths.items()
        for hookpoint in hookpoints
        for shard, tokens in enumerate(of_section)
        if tokens
    ]


def read_group(
    section: str, done: int, number: int, following: Next, on_batch: Callable[[int], None], workers: Workers
) -> Group:
    """The next `number` batches after the `done` ones, fewer at the end.

    `on_batch` gets how many batches are done, about: the other processes are thought to be as fast.
    """
    own, batches = share(number, workers.rank, workers.size), list[ReadBatch]()
    while len(batches) < number and (batch := following(len(batches) in own)):
        batches.append(batch)
        made = min(max(0, len(batches) - own.start), len(own))
        on_batch(done + min(made * workers.size, number))
    return Group(section, done, batches, range(min(own.start, len(batches)), min(own.stop, len(batches))), number)
