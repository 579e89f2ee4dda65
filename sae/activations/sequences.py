"""Token sequences in the place of activations, for a loss of the whole model."""

from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import Int
from torch import Tensor

from sae.data.source import TokenSource


class SequenceSource:
    """Batches of tokens in the place of batches of activations: the loss needs sequences, which cannot be mixed.

    With several `ranks`, each is handed its own of `ranks` batches at a time. All ranks read all batches, so they are
    at the same position and end together.
    """

    def __init__(
        self,
        batches: TokenSource,
        read: Callable[[Tensor], dict[str, Tensor]],
        *,
        step: int,
        rank: int,
        ranks: int,
    ) -> None:
        """`read` makes activations of a batch; `step` is the number of batches of an optimizer step."""
        self._batches, self._read, self._step = batches, read, step
        self._rank, self._ranks = rank, ranks
        self._handed_out_of_step = 0
        self._peeked: tuple[Tensor, dict[str, Any]] | None = None

    @property
    def first(self) -> Int[Tensor, "batch seq"]:
        """The first batch, which is handed out all the same."""
        if self._peeked is None:
            position = self._batches.state_dict()
            self._peeked = next(self._batches), position
        return self._peeked[0]

    def peek(self) -> dict[str, Tensor]:
        """The activations of the first batch; none of them where it is not handed out."""
        activations = self._read(self.first)
        return activations if self._rank == 0 else {name: acts[:0] for name, acts in activations.items()}

    def activations(self, tokens: Int[Tensor, "batch seq"]) -> dict[str, Tensor]:
        """The activations of sequences that were handed out."""
        if len(tokens):
            return self._read(tokens)
        none = self._read(tokens.new_zeros(1, tokens.shape[1]))  # for their widths
        return {name: acts[:0] for name, acts in none.items()}

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Int[Tensor, "batch seq"]:
        """This rank's batch of the step's next batches; empty if they are fewer than the ranks."""
        count = min(self._ranks, self._step - self._handed_out_of_step)
        batches = [self._next_batch() for _ in range(count)]
        self._handed_out_of_step = (self._handed_out_of_step + count) % self._step
        return batches[self._rank] if self._rank < count else batches[0][:0]

    def _next_batch(self) -> Tensor:
        if self._peeked is None:
            return next(self._batches)
        (tokens, _), self._peeked = self._peeked, None
        return tokens

    @property
    def at_end_of_step(self) -> bool:
        """Whether what was handed out last completed a step."""
        return self._handed_out_of_step == 0

    def own_of_first(self, tokens: int) -> int:
        """How many of the first tokens that `peek` shows are this rank's: all."""
        return tokens

    def state_dict(self) -> dict[str, Any]:
        """The position in the data."""
        return self._batches.state_dict() if self._peeked is None else self._peeked[1]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of a `state_dict`."""
        self._peeked, self._handed_out_of_step = None, 0
        self._batches.load_state_dict(state)
