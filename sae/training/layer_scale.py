"""Factors on what later layers get of a latent, where the decoders of cross-layer transcoders are tied."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor


class LayerScale:
    """Gradient of the factors over a step, and how fast each is learned."""

    RATES: ClassVar = {"source": 0.05, "target": 1.0}
    """Rate of all, in units of that of the lengths. By source at 1 the outputs of 30 layers got worse from the
    twentieth step on. By target, where a factor is one latent's, 0.2 and 4 were worse (docs/family.md)."""

    def __init__(self, scale: Float[Tensor, "layers *latents"]) -> None:
        self.grad = torch.zeros_like(scale)
        self._rates = torch.ones_like(scale)

    def add(
        self, products: Float[Tensor, "later *latents"], units: Float[Tensor, "later"], loss_scale: Float[Tensor, ""]
    ) -> None:
        """Add the gradient from Σ ⟨the residuals of later layers, what is written⟩.

        With ties by target the products are those of each latent. `units` are the variance of this layer in that of
        each later one, which is what their errors are divided by.
        """
        columns = units.view(-1, *(1 for _ in products.shape[1:]))
        self.add_gradient(2 * loss_scale * products * columns, units)

    def add_gradient(self, gradient: Float[Tensor, "later *latents"], units: Float[Tensor, "later"]) -> None:
        """Add a gradient by the factors; `units` as of `add`."""
        self.grad[1:] += gradient
        self._rates[1:] = units.view(-1, *(1 for _ in gradient.shape[1:])).rsqrt()

    def rates(self) -> Float[Tensor, "numbers"]:
        """Factors of the learning rate, one for each number."""
        return self._rates.flatten()

    def end_step(self) -> None:
        """Begin a gradient anew."""
        self.grad.zero_()
