"""Activations by hookpoint: an iterator of {hookpoint: (tokens, d_in)} whose position can be saved."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.data.position import count_in
from sae.data.source import TokenSource

Activations = dict[str, Tensor]
"""{hookpoint: (tokens, d_in)}; the same tokens at every hookpoint."""

Harvest = Callable[[Tensor], Mapping[str, Tensor]]
"""Token ids (batch, seq) -> {hookpoint: (batch, seq, d_in)}."""

CountedTokens = tuple[Tensor, Tensor]
"""A batch of token ids (batch, seq) int64, and which of them count (batch, seq) bool; both on the CPU."""


@runtime_checkable
class ActivationSource(Protocol):
    """Where activations come from: live from a language model, or cached. The trainer cannot tell."""

    @property
    def num_batches(self) -> int | None:
        """Batches in all; None if unknown."""

    def __iter__(self) -> Iterator[Activations]: ...

    def __next__(self) -> Activations: ...

    def skip(self) -> int:
        """Pass over the next batch, which another rank reads; how many tokens it holds. StopIteration at the end."""

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON: where the next batch begins. It is the same whether earlier batches were read or
        skipped.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of a `state_dict`."""


class Batch(NamedTuple):
    """A batch of token sequences and what the language model has there."""

    tokens: Int[Tensor, "batch seq"]
    kept: Int[Tensor, "kept"]
    """Positions of the flattened tokens that are not excluded."""
    activations: Activations
    """Activations of the kept tokens, in their order."""


class NonFiniteError(FloatingPointError):
    """Activations hold a NaN or an infinity."""


class LiveActivations:
    """Runs the language model on token batches and flattens what it yields to tokens."""

    def __init__(
        self,
        batches: TokenSource,
        harvest: Harvest,
        *,
        exclude_tokens: Sequence[int] = (),
        exclude_positions: Sequence[int] = (),
    ) -> None:
        """Activations at the token ids and at the positions in the sequence that are excluded are left out."""
        self._batches, self._harvest = batches, harvest
        self._exclude_tokens, self._exclude_positions = exclude_tokens, exclude_positions
        self.batch_index = 0
        """How many batches were read."""

    @property
    def num_batches(self) -> int | None:
        """How many batches of tokens there are in all; None for a stream."""
        return self._batches.num_batches

    def __iter__(self) -> Iterator[Activations]:
        return self

    def __next__(self) -> Activations:
        """Raises NonFiniteError naming the hookpoint, the batch and the position in it."""
        batch = self.next_batch()
        if batch is None:
            raise StopIteration
        return batch.activations

    def next_batch(self) -> Batch | None:
        """The next batch together with its tokens; None at the end. Raises as `__next__` does."""
        tokens = next(self._batches, None)
        if tokens is None:
            return None
        batch = self.batch(tokens, self.batch_index)
        self.batch_index += 1
        return batch

    def next_tokens(self) -> Int[Tensor, "batch seq"] | None:
        """The token ids of the next batch, which is passed over without the language model; None at the end."""
        tokens = next(self._batches, None)
        self.batch_index += tokens is not None
        return tokens

    def batch(self, tokens: Int[Tensor, "batch seq"], batch_index: int | None = None) -> Batch:
        """These tokens and their activations."""
        return Batch(tokens, self.kept(tokens), self.read(tokens, batch_index))

    def skip(self) -> int:
        """Pass over the next batch without the language model; how many of its tokens are not excluded."""
        tokens = self.next_tokens()
        if tokens is None:
            raise StopIteration
        return len(self.kept(tokens))

    def read(self, tokens: Int[Tensor, "batch seq"], batch_index: int | None = None) -> Activations:
        """The activations of one batch of tokens, without the excluded ones, in the order of the tokens."""
        harvested = self._harvest(tokens)
        check_finite(harvested, "a held-out batch" if batch_index is None else f"batch {batch_index}")
        flat = {name: acts.flatten(0, 1) for name, acts in harvested.items()}
        if len(self._exclude_tokens) == len(self._exclude_positions) == 0:
            return flat
        kept = self.kept(tokens)
        return {name: acts[kept.to(acts.device, non_blocking=True)] for name, acts in flat.items()}

    def kept(self, tokens: Int[Tensor, "batch seq"]) -> Int[Tensor, "kept"]:
        """Flattened tokens that are not excluded, by position. Ids live on the CPU, so the device is not asked."""
        return counted(tokens, self._exclude_tokens, self._exclude_positions).flatten().nonzero().squeeze(1)

    def state_dict(self) -> dict[str, Any]:
        """The position in the data."""
        return {"batches": self._batches.state_dict(), "batch_index": self.batch_index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of a `state_dict`."""
        self._batches.load_state_dict(state["batches"])
        self.batch_index = count_in(state, "batch_index")


def counted(
    tokens: Int[Tensor, "batch seq"], exclude_tokens: Sequence[int], exclude_positions: Sequence[int]
) -> Bool[Tensor, "batch seq"]:
    """Which tokens are not excluded, by their id or by their position."""
    positions = torch.isin(torch.arange(tokens.shape[1]), torch.tensor(list(exclude_positions), dtype=torch.int64))
    return ~(torch.isin(tokens, torch.tensor(list(exclude_tokens), dtype=torch.int64)) | positions)


def check_excluded(
    exclude_tokens: Sequence[int], exclude_positions: Sequence[int], *, vocab_size: int, ctx_len: int
) -> None:
    """Raise ValueError for a token id or a position that the model and its sequences do not have."""
    rules = {
        "exclude_tokens": (exclude_tokens, vocab_size, f"below the model's vocabulary size {vocab_size}"),
        "exclude_positions": (
            exclude_positions,
            ctx_len,
            f"positions, from 0, in sequences of ctx_len={ctx_len} tokens",
        ),
    }
    for name, (given, limit, rule) in rules.items():
        beyond = [number for number in given if not 0 <= number < limit]
        if beyond:
            raise ValueError(
                f"{name} must be {rule}, got {beyond[0]}, which excludes nothing; leave it out of --{name}"
            )


def check_finite(activations: Mapping[str, Float[Tensor, "batch seq d_in"]], where: str) -> None:
    """Raise NonFiniteError at the first NaN or infinity. Waits for the device, once for all hookpoints."""
    if not activations:
        return
    sums = torch.stack([acts.sum(dtype=torch.float32) for acts in activations.values()]).cpu()
    if sums.isfinite().all():
        return
    for name, acts in activations.items():
        bad = (~acts.isfinite()).any(-1).nonzero()
        if len(bad):
            sequence, position = bad[0].tolist()
            raise NonFiniteError(
                f"{name}: an activation is not finite in {where}, sequence {sequence}, position {position}"
            )
