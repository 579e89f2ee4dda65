"""The scale of what one dictionary reads and writes, measured on the first activations and fixed from then on."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary.losses import Ordinary, Spread, VarianceSums
from sae.training.initial import AddUp


class Normaliser:
    """Mean and variance per token of what is written, and which tokens are massive. A transcoder's also measures what
    it reads.
    """

    def __init__(self, d_out: int, device: torch.device) -> None:
        self.mean = torch.zeros(d_out, device=device)
        """(d_out,)"""
        self.variance = torch.ones((), dtype=torch.float64, device=device)
        """Total variance per token. The loss is the squared error in units of it."""
        self.longest = torch.full((), math.inf, device=device)
        """Squared distance from the mean above which a token is massive."""
        self.read = torch.ones(2, dtype=torch.float64, device=device)
        """(2,): variance and energy per token of what a transcoder reads."""

    def set(self, found: Spread, *, spare_massive: bool) -> None:
        """Fix mean and variance; massive tokens count if they are not spared."""
        counted = found.ordinary if spare_massive else found.everything
        self.mean.copy_(counted.mean())
        self.variance.copy_(counted.total_variance() / counted.tokens)
        self.longest.copy_(found.rule.farthest)

    def set_read(self, x: Float[Tensor, "tokens d_in"], add_up: AddUp) -> None:
        """Fix the variance and energy of what is read."""
        sums = VarianceSums.of(x)
        add_up([*sums])
        self.read.copy_(torch.stack([sums.total_variance(), sums.second]) / sums.tokens)

    @property
    def rule(self) -> Ordinary:
        """Which tokens are ordinary: those nearer to the mean than `longest`."""
        return Ordinary(self.mean, self.longest)

    def scale(self, tokens_per_step: int) -> Float[Tensor, ""]:
        """Factor that makes a squared error its share of a step's loss."""
        return 1 / (tokens_per_step * self.variance)

    def limit(self, variances: float, *, reads_what_it_writes: bool) -> Float[Tensor, ""]:
        """Bound on ‖what is read‖ ‖residual‖, from a bound in variances per token."""
        units = self.variance if reads_what_it_writes else (self.variance * self.read[1]).sqrt()
        return variances * units

    def state_dict(self, *, of_read: bool) -> dict[str, Tensor]:
        """What survives a restart, by name; what is copied into it is loaded."""
        state = {"mean": self.mean, "variance": self.variance, "longest": self.longest}
        return state | ({"read": self.read} if of_read else {})
