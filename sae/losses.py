"""What is minimised and reported, as sums over tokens that merge exactly over chunks, micro-batches and ranks."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class VarianceSums(NamedTuple):
    """Sums over tokens of y = x − shift, for any fixed `shift` near the mean (it cancels; it keeps digits)."""

    tokens: Float[Tensor, ""]
    """Number of tokens."""
    first: Float[Tensor, "d"]
    """Σ y, per dimension."""
    second: Float[Tensor, ""]
    """Σ ‖y‖²."""

    @classmethod
    def of(cls, shifted: Float[Tensor, "tokens d"]) -> "VarianceSums":
        """The sums of these tokens: taken in their own precision, kept (and merged) in float64."""
        count = torch.full((), float(len(shifted)), dtype=torch.float64, device=shifted.device)  # no wait for a GPU
        return cls(count, shifted.sum(0).double(), shifted.flatten().dot(shifted.flatten()).double())

    @classmethod
    def zeros(cls, d: int, device: torch.device | str) -> "VarianceSums":
        """The sums of no tokens."""
        return cls.of(torch.zeros(0, d, device=device))

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
        """Σ ‖x − mean(x)‖² over the tokens."""
        return self.second - self.first.square().sum() / self.tokens.clamp_min(1)


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
