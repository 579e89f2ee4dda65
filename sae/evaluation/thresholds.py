"""A threshold in the place of the k largest, for libraries that have only thresholds, and its effect."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary.autoencoder import Sae
from sae.dictionary.spec import Saved
from sae.dictionary.threshold import RunningThreshold
from sae.formats.record import with_threshold

_PART = 1024


class Changed(NamedTuple):
    """A dictionary with a threshold, and its quality before and after."""

    sae: Sae
    threshold: float
    l0: tuple[float, float]
    """Latents that fire per token, before and after."""
    fvu: tuple[float, float]
    """Fraction of variance unexplained, before and after."""


@torch.no_grad()
def with_fitted_threshold(
    sae: Sae, x: Float[Tensor, "tokens d_in"], y: Float[Tensor, "tokens d_out"] | None = None
) -> Changed:
    """The dictionary with one threshold for all latents, above which as many fire in the mean over x as before.

    `y` is what a transcoder is to write. Raises ValueError for no tokens.
    """
    if not len(x):
        raise ValueError("a threshold must be fitted on tokens, got none; hold out more when caching")
    before = sae(x, y)
    fired = float((before.top_acts > 0).sum(-1).float().mean())
    running = RunningThreshold(sae.device)
    every = Sae.from_saved(_jumping(sae, 0.0))
    for part in x.split(_PART):
        running.add(every.encode(part).top_acts)
    running.end_step()
    threshold = float(running.value(round(fired)))
    after_sae = Sae.from_saved(_jumping(sae, threshold))
    after = after_sae(x, y)
    l0 = float((after.top_acts > 0).sum(-1).float().mean())
    return Changed(after_sae, threshold, (fired, l0), (float(before.fvu), float(after.fvu)))


def _jumping(sae: Sae, threshold: float) -> Saved:
    return with_threshold(sae.saved(), torch.full_like(sae.encoder.bias.detach(), threshold))
