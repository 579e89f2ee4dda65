"""How often each latent fires, and what is done for those that fire rarely."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.training.recipe import LEAST_SHARE, floor_at

_NEWEST_SHARE = 0.1
"""Weight of the newest step in the moving average of each latent's firing rate."""


class FiringRates:
    """Moving average of each latent's firings, in units of the average latent's. All its tensors stay where they are.

    A recorded step reads and writes them in place.
    """

    def __init__(self, num_latents: int, device: torch.device) -> None:
        self.rates: Float[Tensor, latents] = torch.ones(num_latents, device=device)
        self.step_counts: Int[Tensor, latents] = torch.zeros(num_latents, dtype=torch.int32, device=device)
        """Tokens of this step on which each latent fired."""
        self._average = torch.ones((), device=device)
        """Firings of the average latent in a step."""
        self._floor_left = torch.ones((), device=device)
        """Share of the firings that are asked for at first."""

    def begin_step(self, step: int, total_steps: int) -> None:
        """Ask for the firings of `step`, from 0; without a call for the most."""
        self._floor_left.fill_(floor_at(step, total_steps))

    def count(self, latents: Int[Tensor, "*entries"], fired: Bool[Tensor, "*entries"]) -> None:
        """Count the entries of a code that fired."""
        self.step_counts.index_add_(0, latents.flatten(), fired.flatten().int())

    def set_average(self, firings: float) -> None:
        """Set the firings of the average latent in this step."""
        self._average.fill_(firings)

    def follow(self) -> None:
        """Let the step count in the moving average."""
        self.rates.lerp_(self.step_counts / self._average, _NEWEST_SHARE)

    def end_step(self) -> None:
        """Begin to count anew."""
        self.step_counts.zero_()

    def learning_rates(self, dead: Bool[Tensor, "latents"], least: float) -> Float[Tensor, "latents"]:
        """Factors, at least `least`, of the learning rates of the encoder's rows: 1 for dead ones, which follow AuxK.

        Adam's step is as long for a gradient from one token as for one from a hundred. So the noisiest rows would move
        as far as the surest, and end where nothing selects them.
        """
        return torch.where(dead, 1.0, self.rates.clamp(least, 1.0))

    def raise_silent_(self, bias: Float[Tensor, "latents"], step: Float[Tensor, ""], least_firings: float) -> None:
        """Raise the bias of latents that fire too rarely, b ← b + step (1 − rate / floor)₊.

        While others learn, what a silent latent must exceed grows, and nothing moves it. So it would be overtaken in
        the first steps, and stay silent.
        """
        floor = (least_firings / self._average).clamp_max(LEAST_SHARE) * self._floor_left
        lack = (1 - self.rates / floor).clamp_min(0)
        bias.add_((step * lack).to(bias.dtype))
