"""Meters of one autoencoder in training: sums over tokens, from which its metrics are exact, however often read."""

import math
import sys
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary.losses import VarianceSums, fvu
from sae.training.by_hookpoint import ErrorsByHookpoint


class Metrics(NamedTuple):
    """Metrics of one autoencoder since the last reading. Exact: merged from sums over tokens."""

    fvu: float
    """Fraction of variance unexplained, over these tokens (`losses.fvu`)."""
    l0: float
    """Mean number of latents that fired per token."""
    auxk: float
    """Share of the residual's energy that AuxK leaves: Σ‖ê − e‖² / Σ‖e‖²; 1 if no latent was dead."""
    dead_fraction: float
    """Share of latents that are dead now."""


class Meters:
    """Sums over the tokens of whole steps, and of the step so far, which count once it is taken.

    All are changed in place, so that a recorded step may hold them.
    """

    def __init__(self, d_out: int, device: torch.device, parts: Mapping[str, slice]) -> None:
        """`parts` are the dimensions of each hookpoint of a crosscoder."""
        self.at = ErrorsByHookpoint(parts, device)
        self.variance, self.step_variance = VarianceSums.zeros(d_out, device), VarianceSums.zeros(d_out, device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        """(3,): squared error, what AuxK leaves of it, and latents that fired."""
        self.step_sums = self.sums.clone()

    def add(self, variance: VarianceSums, squared_error: Float[Tensor, ""], fired: Float[Tensor, ""]) -> None:
        """Add some tokens of the step, as if AuxK had left all of their error."""
        self.step_variance.add_(variance)
        squared_error = squared_error.double()
        self.step_sums += torch.stack([squared_error, squared_error, fired.double()])

    def add_auxk(self, change: Float[Tensor, ""]) -> None:
        """Add by how much AuxK changes the error of tokens that were added."""
        self.step_sums[1] += change

    def count_step(self) -> None:
        """Let the step's sums count: until then the state is that before the step, should an error end it halfway."""
        self.variance.add_(self.step_variance)
        self.sums += self.step_sums
        self.step_variance.zero_()
        self.step_sums.zero_()
        self.at.count_step()

    def check(self, *sums: Float[Tensor, ""]) -> None:
        """Make the sums NaN if one of these is not finite."""
        self.sums += 0 * sum(sums[1:], sums[0])

    def finite(self) -> Tensor:
        """A bool tensor (): whether all sums are finite. They stay so once they are not, until they are read."""
        return self.sums.isfinite().all()

    def of_step(self) -> list[Tensor]:
        """The step's sums. Others may add theirs in place."""
        return [*self.step_variance, self.step_sums, *self.at.step_sums()]

    def are_read(self) -> bool:
        """Whether no step has counted since the last reading. Waits for the device."""
        return not self.variance.tokens.item()

    def read(self, dead_fraction: float) -> Metrics:
        """The metrics since the last call, which starts them anew. Waits for the device.

        Raises FloatingPointError if a loss was not finite.
        """
        variance, sums = self.variance.clone(), self.sums.clone()
        self.variance.zero_()
        self.sums.zero_()
        squared_error, auxk_error, fired = sums.tolist()
        if not math.isfinite(squared_error + auxk_error):
            raise FloatingPointError("the loss is not finite")
        return Metrics(
            fvu=fvu(sums[0], variance.total_variance()).item(),
            l0=fired / max(1.0, variance.tokens.item()),
            auxk=auxk_error / max(squared_error, sys.float_info.min),
            dead_fraction=dead_fraction,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The sums of whole steps, by name; what is copied into them is loaded."""
        state = {"sums": self.sums} | {f"variance.{name}": t for name, t in self.variance._asdict().items()}
        return state | {f"at.{name}": t for name, t in self.at.state_dict().items()}
