"""What is minimised and reported, as sums over tokens that merge exactly over chunks, micro-batches and ranks."""

from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK_ELEMENTS = 2**19
"""Of tokens that are centred at a time on a CPU, so that they stay in its cache."""
_CONSTANT = 1e-12
"""Variance per energy that float32 sums cannot tell from 0: tokens that differ by less than a millionth."""


class VarianceSums(NamedTuple):
    """Sums over tokens of y = x − shift, for any fixed `shift`, which cancels."""

    tokens: Float[Tensor, ""]
    """Number of tokens."""
    first: Float[Tensor, "d"]
    """Σ y, per dimension."""
    second: Float[Tensor, ""]
    """Σ ‖y‖²."""

    @classmethod
    def of(cls, x: Float[Tensor, "tokens d"]) -> "VarianceSums":
        """The sums of these tokens for shift 0, however far their mean is from it: taken about it, then moved."""
        chunk = max(1, _CHUNK_ELEMENTS // max(1, x.shape[1])) if x.is_cpu else max(1, len(x))
        return reduce(cls.merge, (cls._about_mean(part) for part in x.split(chunk)))

    @classmethod
    def _about_mean(cls, x: Float[Tensor, "tokens d"]) -> "VarianceSums":
        x = at_least_float32(x)
        mean = x.sum(0) / max(1, len(x))
        return cls.near_mean(x - mean).shifted_by(mean)

    @classmethod
    def near_mean(cls, shifted: Float[Tensor, "tokens d"]) -> "VarianceSums":
        """The sums of these tokens y, whose mean is near 0: taken in float32 at least, kept (and merged) in float64."""
        y = at_least_float32(shifted)
        count = torch.full((), float(len(y)), dtype=torch.float64, device=y.device)  # no wait for a GPU
        return cls(count, y.sum(0).double(), y.flatten().dot(y.flatten()).double())

    @classmethod
    def zeros(cls, d: int, device: torch.device | str) -> "VarianceSums":
        """The sums of no tokens."""
        return cls.near_mean(torch.zeros(0, d, device=device))

    def merge(self, other: "VarianceSums") -> "VarianceSums":
        """The sums of both sets of tokens."""
        return VarianceSums(self.tokens + other.tokens, self.first + other.first, self.second + other.second)

    def add_(self, other: "VarianceSums") -> None:
        """Become the sums of both sets of tokens."""
        for mine, theirs in zip(self, other, strict=True):
            mine.add_(theirs)

    def zero_(self) -> None:
        """Become the sums of no tokens."""
        for mine in self:
            mine.zero_()

    def clone(self) -> "VarianceSums":
        """The same, in memory of its own."""
        return VarianceSums(*(mine.clone() for mine in self))

    def shifted_by(self, delta: Float[Tensor, "d"]) -> "VarianceSums":
        """The sums of y + delta, for the same tokens."""
        delta = delta.double()
        second = self.second + 2 * (delta @ self.first) + self.tokens * (delta @ delta)
        return VarianceSums(self.tokens, self.first + self.tokens * delta, second)

    def total_variance(self) -> Float[Tensor, ""]:
        """Σ ‖x − mean(x)‖² over the tokens: 0 for one token, and for tokens that are equal up to rounding."""
        variance = self.second - self.first.square().sum() / self.tokens.clamp_min(1)
        return variance.masked_fill(variance <= _CONSTANT * self.second.abs(), 0)


def at_least_float32(x: Tensor) -> Tensor:
    """x in a type whose sums of squares neither overflow nor lose what is summed: float32, or float64 if it is that."""
    return x if x.dtype == torch.float64 else x.float()


def fvu(squared_error: Float[Tensor, ""], total_variance: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Fraction of variance *un*explained: Σ‖x − x̂‖² / Σ‖x − mean(x)‖².

    Both sums run over the same tokens and all dimensions; the mean is per dimension, over these tokens. This is the
    project's only definition of FVU. 0 is perfect, 1 is what the mean alone reaches; constant activations give NaN
    or infinity.
    """
    return squared_error / total_variance


def auxk_scale(num_dead: int, k_aux: int) -> float:
    """Factor that phases AuxK in while fewer latents are dead than it would pick: min(num_dead / k_aux, 1)."""
    return min(num_dead / k_aux, 1.0)
