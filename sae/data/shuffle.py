"""Mix tokens across sequences: neighbours in a text are alike, and a step should not see them together."""

from collections.abc import Iterator
from typing import Any

import torch

from sae.data.activations import Activations, ActivationSource
from sae.data.place import whole

STEPS, BYTES = 8, 2**31
"""A block spans this many steps, and the two blocks that exist at a time take at most this much memory."""


def batches_per_block(batches_per_step: int, bytes_per_batch: int) -> int:
    """How many batches are mixed with each other: up to eight steps' worth, as many whole steps as fit, at least 1.

    Of a step that does not fit, an equal part: so that one batch of 8 is mixed with what two batches of 4 are.
    """
    if steps := min(STEPS, BYTES // (2 * bytes_per_batch * batches_per_step)):
        return steps * batches_per_step
    fitting = max(1, BYTES // (2 * bytes_per_batch))
    return max(part for part in range(1, batches_per_step + 1) if batches_per_step % part == 0 and part <= fitting)


class ShuffleBuffer:
    """Gathers blocks of batches, permutes the tokens of a block, and hands them out in as many parts as went in.

    While one block is handed out, the next is gathered, a batch for a part. Every token comes out exactly once. What
    comes out depends on the tokens and the seed, not on the batch size: one batch of 8 sequences or two of 4 give the
    same tokens in the same order. The state is the place in the source where the block begins, so a restart gathers
    the block again instead of keeping it on disk.
    """

    def __init__(self, source: ActivationSource, block: int, *, seed: int) -> None:
        """`block` is the number of batches that are mixed with each other; 1 changes nothing and costs nothing."""
        self._source, self._block, self._seed = source, block, seed
        self._index = 0
        self._handed_out = 0
        self._start = self._next_start = source.state_dict()
        self._mixed: Activations = {}
        self._order = torch.empty(0, dtype=torch.int64)
        self._parts = 0
        self._filling: list[Activations] = []

    @property
    def num_batches(self) -> int | None:
        """How many parts come out in all; None if nobody knows."""
        return self._source.num_batches

    def __iter__(self) -> Iterator[Activations]:
        return self

    def __next__(self) -> Activations:
        """The next part of the tokens."""
        self.peek()
        if self._block > 1:
            self._gather(1)
        self._handed_out += 1
        if self._block == 1:
            part, self._mixed = self._mixed, {}
            return part
        start, end = ((self._handed_out + i) * len(self._order) // self._parts for i in (-1, 0))
        chosen = self._order[start:end]
        return {name: acts[chosen.to(acts.device, non_blocking=True)] for name, acts in self._mixed.items()}

    def peek(self) -> Activations:
        """All tokens of the current block, in the source's order. Raises StopIteration at the end of the data."""
        if self._handed_out == self._parts:
            self._next_block()
        return self._mixed

    def _gather(self, batches: int) -> None:
        """Read up to `batches` batches of the block that comes next; fewer at the end of the data."""
        for _ in range(min(batches, self._block - len(self._filling))):
            batch = next(self._source, None)
            if batch is None:
                return
            self._filling.append(batch)

    def _next_block(self) -> None:
        self._gather(self._block)
        if not self._filling:
            raise StopIteration
        if self._parts:
            self._index += 1
        batches, self._filling = self._filling, []
        self._parts, self._handed_out = len(batches), 0
        self._start, self._next_start = self._next_start, self._source.state_dict()
        # One hookpoint at a time, each freed from the batches as it is joined.
        self._mixed = {name: torch.cat([batch.pop(name) for batch in batches]) for name in list(batches[0])}
        tokens = len(next(iter(self._mixed.values())))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._index)
        self._order = torch.randperm(tokens, generator=generator)

    def state_dict(self) -> dict[str, Any]:
        """Where the block begins in the source, and how far it was handed out."""
        return {"block_start": self._start, "index": self._index, "handed_out": self._handed_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gather the block of a `state_dict` again, and what was gathered of the next."""
        self._source.load_state_dict(state["block_start"])
        self._start = self._next_start = state["block_start"]
        self._filling, self._parts, self._handed_out = [], 0, 0
        self._index, handed_out = whole(state, "index"), whole(state, "handed_out", self._block)
        if handed_out or self._index:
            try:
                self._next_block()
            except StopIteration:
                pass
            if handed_out > self._parts or not self._parts:
                raise ValueError("the data must reach to the saved place, but end before; resume with the same data")
            self._handed_out = handed_out
            self._gather(self._handed_out if self._block > 1 else 0)
