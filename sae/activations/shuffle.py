"""Mix tokens across sequences: neighbours in a text are alike, and a step should not see them together."""

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sae.activations.source import Activations, ActivationSource
from sae.data.position import count_in

STEPS, BYTES = 8, 2**30
"""A block spans this many steps, and takes at most this much memory. What of it was handed out is freed for the next
one, so the two that exist at a time take little more."""
FIRST_TOKENS = 8192
"""Tokens of the first block, at least, which training waits for, and takes mean and variance from."""


def batches_per_block(batches_per_step: int, bytes_per_batch: int) -> int:
    """Number of batches that are mixed with each other: up to eight steps' worth, as many whole steps as fit, at least
    1.

    If one step does not fit, it is an equal part of it. So one batch of 8 is mixed with the same tokens as two batches
    of 4.
    """
    if steps := min(STEPS, BYTES // (bytes_per_batch * batches_per_step)):
        return steps * batches_per_step
    fitting = max(1, BYTES // bytes_per_batch)
    return max(part for part in range(1, batches_per_step + 1) if batches_per_step % part == 0 and part <= fitting)


def batches_of_first_block(block: int, batches_per_step: int, tokens_per_step: int) -> int:
    """How many batches the first block spans: a step, two, four, …, until they are enough, or as large as the others.

    `block` itself where a step does not fit into it.
    """
    if block % batches_per_step:
        return block
    steps = 1
    while steps * tokens_per_step < FIRST_TOKENS:
        steps *= 2
    return min(block, steps * batches_per_step)


class ShuffleBuffer:
    """Gathers blocks of batches, permutes the tokens of a block, and hands them out in `split` parts for each batch.

    While one block is handed out, the next is gathered, a batch for a batch. What was handed out is freed, so the two
    take the memory of one and of a batch. The first may be smaller, so that training begins sooner. Each is then twice
    as large as the one before, up to the full size. Every token of whole steps comes out exactly once. Batches at the
    end of the data that make no step are left out, and mixed with no others.

    The result depends on the tokens and the seed, not on the batch size. One batch of 8 sequences or two of 4 give the
    same tokens in the same order. It does not depend on the number of `ranks` either. Each rank reads the activations
    of every ranks-th batch of a block, and hands out its own tokens of `ranks` parts at a time. Together they hand out
    what one would.

    The state is the position in the source where the block begins. A restart, by any number of ranks, gathers the block
    again instead of keeping it on disk. Also where the data go on behind what was their end, as with more `max_tokens`.
    """

    def __init__(
        self,
        source: ActivationSource,
        block: int,
        *,
        seed: int,
        step: int = 1,
        split: int = 1,
        first: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`block` is the number of batches that are mixed with each other; 1 with a `split` of 1 costs nothing.

        `first` is the size of the first block, in whole steps (None: that of the others).

        `step` is the number of parts of an optimizer step, so `step` batches make `split` steps. It is a divisor of
        `block`, or with a `split` of 1 a multiple. So what is handed out at once does not reach over a block's end,
        where states are saved.
        """
        self._source, self._block, self._seed = source, block, seed
        self._step, self._split, self._rank, self._ranks = step, split, rank, ranks
        self._first = block if first is None else first
        self._nothing: Activations | None = None
        self._whole_steps = True
        """False in a run of an earlier version, which mixed what is left at the end of the data with the last steps."""
        self._index = 0
        self._start = self._next_start = self._filled_to = source.state_dict()
        self._own = self._order = torch.empty(0, dtype=torch.int64)
        self._peeked = 0
        self._forget()

    def _forget(self) -> None:
        self._parts = self._handed_out = self._handed_out_of_step = self._filling_from = 0
        self._joined: Activations = {}
        self._shuffled: deque[Activations] = deque()
        self._filling: list[Activations] = []
        self._filling_tokens: list[int] = []

    @property
    def num_batches(self) -> int | None:
        """Parts that come out in all; None if unknown."""
        batches = self._source.num_batches
        return None if batches is None else self._of_whole_steps(batches) * self._split

    @property
    def at_end_of_step(self) -> bool:
        """Whether what was handed out last completed a step."""
        return self._handed_out_of_step == 0

    def __iter__(self) -> Iterator[Activations]:
        return self

    def __next__(self) -> Activations:
        """This rank's tokens of the next part, or of the next `ranks` parts."""
        if self._handed_out == self._parts:
            self._next_block()
        parts = min(self._ranks, self._parts - self._handed_out, self._step - self._handed_out_of_step)
        at_once = parts == self._parts and self._block <= self._ranks
        if not at_once:
            self._gather(self._due(self._handed_out + parts))  # may raise, and is asked again
            if self._handed_out == 0:
                self._shuffle()
        self._handed_out += parts
        self._handed_out_of_step = (self._handed_out_of_step + parts) % self._step
        if at_once:
            block, self._joined = self._joined, {}
            return block
        return _join([self._shuffled.popleft() for _ in range(parts)])

    def peek(self) -> Activations:
        """This rank's tokens of the block that is handed out next, in the source's order; only between blocks.

        Raises StopIteration at the end of the data. A block may be larger than `block`, so that every rank has a batch.
        Then only its first `block` batches are shown.
        """
        if self._handed_out == self._parts:
            self._next_block()
        return dict(self._joined) if self._rank < self._block else _none_of(self._joined)

    def own_of_first(self, tokens: int) -> int:
        """How many of this rank's tokens in `peek` are among the first so many that all ranks' `peek` show."""
        return int((self._own[: min(tokens, self._peeked)] >= 0).sum())

    def _due(self, handed_out: int) -> int:
        """Batches of the next block that are gathered once so many parts of this one are handed out."""
        if self._block % self._step:
            return -(-handed_out // self._split)
        return -(-handed_out * self._block_size() // self._parts) if self._parts else 0

    def _gather(self, batches: int) -> None:
        """Read the block that comes next up to so many batches; fewer at the end of the data."""
        for _ in range(min(batches, self._block_size()) - len(self._filling)):
            try:
                tokens, batch = self._read(mine=len(self._filling) % self._ranks == self._rank)
            except StopIteration:
                return
            self._filling.append(batch)
            self._filling_tokens.append(tokens)
            if len(self._filling) == self._mixed_of(len(self._filling)):
                self._filled_to = self._source.state_dict()

    def _read(self, *, mine: bool) -> tuple[int, Activations]:
        """Number of tokens in the next batch, and their activations; another rank's batch gives no activations."""
        if not mine and self._nothing is not None:
            return self._source.skip(), dict(self._nothing)
        batch = next(self._source)
        self._nothing = _none_of(batch)  # the first batch is read by all ranks, to know what activations look like
        return len(next(iter(batch.values()))), batch if mine else dict(self._nothing)

    def _block_size(self) -> int:
        """Number of batches in the gathered block, if there are so many."""
        if self._block % self._step == 0:
            index = self._index + bool(self._parts)
            return min(self._block, self._first << min(index, 64))
        return min(max(self._block, self._ranks), self._step - self._filling_from)

    def _of_whole_steps(self, batches: int) -> int:
        return batches - batches % self._step if self._whole_steps else batches

    def _mixed_of(self, gathered: int) -> int:
        """How many of so many gathered batches are mixed: those of whole steps, if a block is not a part of a step."""
        return gathered if self._block % self._step else self._of_whole_steps(gathered)

    def _next_block(self, at_most: int | None = None) -> None:
        size = self._block_size()
        self._gather(size if at_most is None else min(size, at_most))
        mixed = self._mixed_of(len(self._filling))
        del self._filling[mixed:], self._filling_tokens[mixed:]
        if not self._filling:
            raise StopIteration
        if self._parts:
            self._index += 1
        batches, self._filling = self._filling, []
        tokens, self._filling_tokens = self._filling_tokens, []
        self._parts, self._handed_out = len(batches) * self._split, 0
        self._filling_from = (self._filling_from + len(batches)) % self._step
        self._start, self._next_start = self._next_start, self._filled_to
        self._joined = _join(batches)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._index)
        self._own, self._peeked = self._own_rows(tokens), sum(tokens[: self._block])
        self._order = self._own[torch.randperm(sum(tokens), generator=generator)]

    def _shuffle(self) -> None:
        """Put the block's tokens into random order, part by part; one hookpoint at a time, each then freed."""
        ends = [part * len(self._order) // self._parts for part in range(self._parts + 1)]
        chosen = [self._order[start:end] for start, end in zip(ends, ends[1:], strict=False)]
        chosen = [part[part >= 0] for part in chosen]
        self._shuffled = deque({} for _ in chosen)
        for name in list(self._joined):
            acts = self._joined.pop(name)
            for part, rows in zip(self._shuffled, chosen, strict=True):
                part[name] = acts[rows.to(acts.device, non_blocking=True)]

    def _own_rows(self, tokens: list[int]) -> Int[Tensor, "tokens"]:
        """For each token of batches of so many: its row among those of this rank, or −1."""
        mine = torch.arange(len(tokens)) % self._ranks == self._rank
        own = mine.repeat_interleave(torch.tensor(tokens))
        return torch.where(own, own.cumsum(0) - 1, -1)

    def state_dict(self) -> dict[str, Any]:
        """Where the block begins in the source, and how far it was handed out; the same on all ranks."""
        whole = {"whole_steps": True} if self._whole_steps else {}
        if self._parts and self._handed_out == self._parts:
            return {"block_start": self._next_start, "index": self._index + 1, "handed_out": 0, **whole}
        batches = {"batches": self._parts // self._split} if self._handed_out else {}
        return {"block_start": self._start, "index": self._index, "handed_out": self._handed_out, **batches, **whole}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gather the block of a `state_dict` again, and what was gathered of the next."""
        self._source.load_state_dict(state["block_start"])
        self._start = self._next_start = state["block_start"]
        self._whole_steps = bool(state.get("whole_steps"))
        self._forget()
        self._index, handed_out = count_in(state, "index"), count_in(state, "handed_out", self._block * self._split)
        batches = count_in(state, "batches", max(self._block, self._step)) if "batches" in state else None
        if handed_out or self._index:
            with suppress(StopIteration):
                self._next_block(batches)
            if handed_out > self._parts:
                raise ValueError("the data must reach to the saved place, but end before; resume with the same data")
            if handed_out:
                self._shuffle()
            for _ in range(handed_out):
                self._shuffled.popleft()
            self._handed_out = handed_out
            self._gather(self._due(handed_out))


def _join(batches: list[Activations]) -> Activations:
    """Batches one after the other. One hookpoint at a time, each freed from the batches as it is joined."""
    if len(batches) == 1:
        return batches[0]
    return {name: torch.cat([batch.pop(name) for batch in batches]) for name in list(batches[0])}


def _none_of(activations: Activations) -> Activations:
    """Activations of no tokens, with the same hookpoints, types and widths."""
    return {name: acts.new_empty(0, *acts.shape[1:]) for name, acts in activations.items()}
