"""Ranks that hold the other latents of a sharded autoencoder (`--shard_latents`). `WHOLE`: it is not sharded."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Agree = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Rule for what is left, in this shard, of the values and indices (tokens, width) that each shard's selection keeps."""


@runtime_checkable
class LatentShards(Protocol):
    """The ranks that hold equal parts of an autoencoder's latents. All of them see the same tokens."""

    @property
    def part(self) -> int:
        """The number of this shard, from 0; its latents follow those of the shards before."""

    @property
    def parts(self) -> int:
        """The number of shards."""

    def total(self, number: int) -> int:
        """The sum of all shards' numbers."""

    def sum_(self, partial: Tensor) -> Tensor:
        """Add up all shards' tensors, in place."""

    def least_(self, partial: Tensor) -> Tensor:
        """The least of all shards' tensors, entry by entry, in place."""

    def gathered(self, own: Tensor) -> list[Tensor]:
        """All shards' tensors, which have one shape, in order."""


class Unsharded:
    """The holder of all latents."""

    part, parts = 0, 1

    def total(self, number: int) -> int:
        return number

    def sum_(self, partial: Tensor) -> Tensor:
        return partial

    def least_(self, partial: Tensor) -> Tensor:
        return partial

    def gathered(self, own: Tensor) -> list[Tensor]:
        return [own]


WHOLE = Unsharded()


def keep_all(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Each shard's selection as it is: of a rule that no other latent changes."""
    return values, indices


def keep_best(
    values: Float[Tensor, "tokens width"], indices: Int[Tensor, "tokens width"], shards: LatentShards, most: int = 0
) -> tuple[Float[Tensor, "tokens kept"], Int[Tensor, "tokens kept"]]:
    """This shard's candidates that are among the `most` largest of a token in all shards; others are 0 or left out.

    `most` is the width at least, which may be less where a shard has no more latents. Waits for the device, if there
    are others: the result is only as wide as the token with most of them needs.
    """
    if shards.parts == 1:
        return values, indices
    rows = torch.cat(shards.gathered(values), 1)
    best = rows.topk(min(max(most, values.shape[1]), rows.shape[1]), sorted=False).indices
    kept = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, best, True)
    return _narrowed(values * _own(kept, shards), indices)


def keep_best_of_each(
    values: Float[Tensor, "tokens groups"], indices: Int[Tensor, "tokens groups"], shards: LatentShards
) -> tuple[Float[Tensor, "tokens kept"], Int[Tensor, "tokens kept"]]:
    """This shard's candidates that are the largest of their group, a column, in all shards; likewise."""
    if shards.parts == 1:
        return values, indices
    winner = torch.stack(shards.gathered(values)).argmax(0)
    return _narrowed(values * (winner == shards.part), indices)


def ranks(acts: Float[Tensor, "tokens width"], shards: LatentShards, most: int) -> Int[Tensor, "tokens width"]:
    """The rank of each activation of a token among all shards', from 0 for the largest; a shard has at most `most`.

    Ties are broken by the order of the shards, and of the entries in them.
    """
    width = acts.shape[1]
    padded = acts if shards.parts == 1 else F.pad(acts, (0, most - width))
    found = torch.cat(shards.gathered(padded), 1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return _own(found, shards)[:, :width].contiguous()


def _own(rows: Tensor, shards: LatentShards) -> Tensor:
    """This shard's columns of what all of them have side by side."""
    return rows.view(len(rows), shards.parts, -1)[:, shards.part]


def _narrowed(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The entries that are not 0, as wide as the token with most of them needs, and 1 at least."""
    width = max(1, int((values > 0).sum(1).max())) if len(values) else 1
    values, at = values.topk(width, sorted=False)
    return values, indices.gather(1, at)
