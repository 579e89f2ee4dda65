"""Ranks that hold the other latents of a sharded autoencoder (`--shard_latents`). `WHOLE`: it is not sharded."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class LatentShards(Protocol):
    """The holders of the equal parts into which an autoencoder's latents are split. All of them see the same tokens."""

    def total(self, number: int) -> int:
        """The sum of everybody's numbers."""

    def sum_(self, partial: Tensor) -> Tensor:
        """Add up everybody's tensors, in place."""

    def least_(self, partial: Tensor) -> Tensor:
        """The least of everybody's tensors, by entry, in place."""

    def keep_best(self, values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """This shard's candidates, of k a token, that are among everybody's k largest; others are 0 or left out.

        values and indices are (tokens, k), and so is the result, or narrower.
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
