"""The share of one process in the batches of an evaluation."""

from collections.abc import Callable, Iterable, Iterator

from sae.activations.source import CountedTokens
from sae.activations.workers import Workers


class Share:
    """A pass over all batches that hands out those of this rank, every size-th, and counts all.

    Every rank reads all of them: ids are cheap, and the model is not.
    """

    def __init__(self, batches: Iterable[CountedTokens], ranks: Workers, reach: Callable[[float], None]) -> None:
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
