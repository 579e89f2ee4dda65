"""A threshold in the place of the k largest, for libraries that have only thresholds, and its effect."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary.autoencoder import Sae
from sae.dictionary.cross_layer import Member, reconstruct
from sae.dictionary.losses import VarianceSums
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
    fired = _fired(before.top_acts)
    threshold = _threshold(sae, x, round(fired))
    after_sae = Sae.from_saved(_jumping(sae, threshold))
    after = after_sae(x, y)
    return Changed(after_sae, threshold, (fired, _fired(after.top_acts)), (float(before.fvu), float(after.fvu)))


class ChangedLayers(NamedTuple):
    """A cross-layer transcoder with a threshold for each layer, and its quality before and after."""

    saes: list[Sae]
    thresholds: list[float]
    l0: tuple[float, float]
    """Latents of all layers that fire per token, before and after."""
    fvu: tuple[float, float]
    """Fraction of variance unexplained of all layers' outputs, before and after."""


@torch.no_grad()
def with_fitted_thresholds(
    layers: Sequence[Member], xs: Sequence[Float[Tensor, "tokens d_in"]], ys: Sequence[Float[Tensor, "tokens d_out"]]
) -> ChangedLayers:
    """All layers of a cross-layer transcoder, each with one threshold, above which as many fire in the mean over its x.

    `xs` is what each reads, `ys` what each own module makes. Raises ValueError for no tokens.
    """
    if not len(xs[0]):
        raise ValueError("a threshold must be fitted on tokens, got none; hold out more when caching")
    pairs = [(layer.sae, x) for layer, x in zip(layers, xs, strict=True)]
    found = [_threshold(sae, x, round(_fired(sae.encode(x).top_acts))) for sae, x in pairs]
    after = [
        layer._replace(sae=Sae.from_saved(_jumping(layer.sae, least)))
        for layer, least in zip(layers, found, strict=True)
    ]
    (l0, fvu), (l0_after, fvu_after) = (_together(each, xs, torch.cat(list(ys), -1)) for each in (layers, after))
    return ChangedLayers([layer.sae for layer in after], found, (l0, l0_after), (fvu, fvu_after))


def _together(layers: Sequence[Member], xs: Sequence[Tensor], y: Float[Tensor, "tokens d_out"]) -> tuple[float, float]:
    """L0 and FVU of all layers together."""
    l0, error = 0.0, 0.0
    for part in torch.arange(len(y)).split(_PART):
        codes, recon = reconstruct(layers, [x[part] for x in xs])
        l0 += sum(_fired(code.top_acts) for code in codes) * len(part) / len(y)
        error += float((recon - y[part]).square().sum())
    return l0, error / float(VarianceSums.of(y).total_variance())


def _fired(top_acts: Tensor) -> float:
    """Latents that fire per token."""
    return float((top_acts > 0).sum(-1).float().mean())


def _threshold(sae: Sae, x: Float[Tensor, "tokens d_in"], wanted: int) -> float:
    """The threshold above which that many latents of a token fire in the mean."""
    running = RunningThreshold(sae.device)
    every = Sae.from_saved(_jumping(sae, 0.0))
    for part in x.split(_PART):
        running.add(every.encode(part).top_acts)
    running.end_step()
    return float(running.value(wanted))


def _jumping(sae: Sae, threshold: float) -> Saved:
    return with_threshold(sae.saved(), torch.full_like(sae.encoder.bias.detach(), threshold))
