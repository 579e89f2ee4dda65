"""The processes that share the sequences of an evaluation."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

from torch import Tensor

from sae.activations.source import CountedTokens


@runtime_checkable
class Ranks(Protocol):
    """Processes that each measure some of the batches, and add up their sums. `World` is one kind."""

    rank: int
    size: int

    def together(self) -> AbstractContextManager[None]:
        """A block that may fail on one rank only: then all leave it with an error."""

    def add_up(self, tensors: Iterable[Tensor]) -> Callable[[], None]:
        """Start to add up all ranks' tensors, in place; the result waits for it."""


class Alone:
    """One process, which measures all batches."""

    rank, size = 0, 1

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def add_up(self, tensors: Iterable[Tensor]) -> Callable[[], None]:
        return lambda: None


ALONE = Alone()


class Share:
    """A pass over all batches that hands out those of this rank, every size-th, and counts all.

    Every rank reads all of them: ids are cheap, and the model is not.
    """

    def __init__(self, batches: Iterable[CountedTokens], ranks: Ranks, reach: Callable[[float], None]) -> None:
        """`reach` gets the number of tokens done; other ranks' count when they are passed over."""
        self._batches, self._ranks, self._reach = batches, ranks, reach
        self._tokens_of_batch = self.sequences = self.ctx_len = 0

    @property
    def tokens(self) -> int:
        """Tokens that passed by, excluded ones included."""
        return self.sequences * self.ctx_len

    def __iter__(self) -> Iterator[CountedTokens]:
        for index, batch in enumerate(self._batches):
            self._tokens_of_batch = batch[0].numel()
            if index % self._ranks.size == self._ranks.rank:
                yield batch
            self.sequences, self.ctx_len = self.sequences + len(batch[0]), batch[0].shape[1]
            self._reach(self.tokens)

    def part_done(self, part: float) -> None:
        """Report how much of the batch that was handed out is done."""
        self._reach(self.tokens + part * self._tokens_of_batch)
