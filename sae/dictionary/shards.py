"""Ranks that hold the other latents of a sharded autoencoder (`--shard_latents`). `WHOLE`: it is not sharded."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class LatentShards(Protocol):
    """The ranks that hold equal parts of an autoencoder's latents. All of them see the same tokens."""

    def total(self, number: int) -> int:
        """The sum of all shards' numbers."""

    def sum_(self, partial: Tensor) -> Tensor:
        """Add up all shards' tensors, in place."""

    def least_(self, partial: Tensor) -> Tensor:
        """The least of all shards' tensors, entry by entry, in place."""

    def keep_best(self, values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """This shard's candidates, k for each token, that are among all shards' k largest; others are 0 or left out.

        values and indices are (tokens, k); the result is as wide, or narrower.
        """


class Unsharded:
    """The holder of all latents."""

    def total(self, number: int) -> int:
        return number

    def sum_(self, partial: Tensor) -> Tensor:
        return partial

    def least_(self, partial: Tensor) -> Tensor:
        return partial

    def keep_best(self, values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        return values, indices


WHOLE = Unsharded()
