"""The metrics: what each is called, and which sums it is the ratio of. docs/evaluation.md explains them."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.evaluation.measure import Measured
from sae.evaluation.moments import Estimate, Moments, weights
from sae.evaluation.sums import PREDICTION, RECONSTRUCTION, PredictionSums, ReconstructionSums, position_names

Ratio = tuple[dict[str, float], dict[str, float]]


def _per(below: str, **above: float) -> Ratio:
    return above, {below: 1.0}


OF_RECONSTRUCTION: dict[str, Ratio] = {
    "fvu": _per("ordinary_variance", ordinary_squared_error=1),
    "fvu_with_massive": _per("variance", squared_error=1),
    "massive_fraction": _per("tokens", massive=1),
    "explained_variance": _per("variance", variance=1, squared_error=-1),
    "cossim": _per("tokens", cosine=1),
    "l2_ratio": _per("tokens", norm_ratio=1),
    "relative_reconstruction_bias": _per("overlap", recon_energy=1),
    "l0": ({"ordinary_fired": 1}, {"tokens": 1, "massive": -1}),
}
OF_PREDICTION: dict[str, Ratio] = {
    "kl_div_with_sae": _per("tokens", kl=1),
    "kl_div_with_ablation": _per("tokens", kl_zero=1),
    "kl_div_with_mean_ablation": _per("tokens", kl_mean=1),
    "kl_div_score": _per("kl_zero", kl_zero=1, kl=-1),
    "top1_agreement": _per("tokens", agree=1),
}
OF_NEXT_TOKEN: dict[str, Ratio] = {
    "ce_loss_without_sae": _per("predicted", ce_clean=1),
    "ce_loss_with_sae": _per("predicted", ce=1),
    "ce_loss_with_ablation": _per("predicted", ce_zero=1),
    "ce_loss_with_mean_ablation": _per("predicted", ce_mean=1),
    "ce_loss_score": ({"ce_zero": 1, "ce": -1}, {"ce_zero": 1, "ce_clean": -1}),
    "ce_loss_score_mean": ({"ce_mean": 1, "ce": -1}, {"ce_mean": 1, "ce_clean": -1}),
}
"""Metrics of causal models alone: in others a token sees what it is asked to predict."""

RARE = 1e-4
"""A latent is rare if it fires, but on fewer than this share of the tokens."""

DECADES, BINS_PER_DECADE = 7, 4
"""The density histogram goes from 10⁻⁷ to 1, in quarters of a decade."""


class Quality(NamedTuple):
    """Measurements of one autoencoder, or of all of a checkpoint at once."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """95 % confidence intervals by sequence, of the metrics that are ratios of sums over tokens."""
    by_position: dict[str, dict[str, float]]
    """Some metrics again, by position in the sequence: "0", "1", "2-3", "4-7", …."""
    density: list[int]
    """Histogram of latents by log10 of the share of tokens they fire on, in `BINS_PER_DECADE` bins a decade. Latents
    that never fire are in no bin."""


def qualities(
    measured: Measured, seq: int, *, causal: bool, parts: Mapping[tuple[str, str], Sequence[str]] = MappingProxyType({})
) -> dict[tuple[str, str], Quality]:
    """The metrics that follow from the sums, by label and hookpoint; FVU of `parts` is "fvu/" and their name."""
    keys = dict.fromkeys([*measured.reconstructions, *measured.predictions])
    return {
        key: _quality(
            measured.reconstructions.get(key),
            measured.predictions.get(key),
            seq,
            causal=causal,
            parts=parts.get(key, ()),
        )
        for key in keys
    }


def _quality(
    reconstruction: ReconstructionSums | None,
    prediction: PredictionSums | None,
    seq: int,
    *,
    causal: bool,
    parts: Sequence[str],
) -> Quality:
    estimates: dict[str, Estimate] = {}
    counted: dict[str, float] = {}
    by_position: dict[str, dict[str, float]] = {name: {} for name in position_names(seq)}
    density: list[int] = []
    if reconstruction is not None:
        estimates |= _ratios(reconstruction.moments, RECONSTRUCTION, OF_RECONSTRUCTION)
        tokens = int(reconstruction.moments.first[0])
        counted |= _firing(reconstruction.fired, tokens)
        variance = reconstruction.moments.first[RECONSTRUCTION.index("ordinary_variance")]
        by_part = zip(parts, (reconstruction.partial_errors / variance).tolist(), strict=True)
        counted |= {f"fvu/{part}": value for part, value in by_part}
        density = density_histogram(reconstruction.fired, tokens)
        _tokens, error, variance = reconstruction.by_position.T
        _add_positions(by_position, {"fvu": error / variance})
    if prediction is not None:
        estimates |= _ratios(prediction.moments, PREDICTION, OF_PREDICTION)
        tokens_at, kl, predicted, ce_clean, ce = prediction.by_position.T
        _add_positions(by_position, {"kl_div_with_sae": kl / tokens_at})
        if causal:
            estimates |= _ratios(prediction.moments, PREDICTION, OF_NEXT_TOKEN)
            _add_positions(
                by_position, {"ce_loss_without_sae": ce_clean / predicted, "ce_loss_with_sae": ce / predicted}
            )
    metrics = {name: estimate.value for name, estimate in estimates.items()} | counted
    intervals = {name: (estimate.low, estimate.high) for name, estimate in estimates.items()}
    return Quality(metrics, intervals, by_position, density)


def _ratios(moments: Moments, names: tuple[str, ...], ratios: Mapping[str, Ratio]) -> dict[str, Estimate]:
    return {
        metric: moments.ratio(weights(names, above), weights(names, below)) for metric, (above, below) in ratios.items()
    }


def _firing(fired: Tensor, tokens: int) -> dict[str, float]:
    """Numbers of latents by how often they fire."""
    density = fired.double() / max(1, tokens)

    def share(mask: Tensor) -> float:
        return mask.double().mean().item()

    return {
        "frac_alive": share(density > 0),
        "unused_fraction": share(density == 0),
        "firings_per_latent": fired.double().mean().item(),
        "rare_fraction": share((density > 0) & (density < RARE)),
        "freq_over_1_percent": share(density > 0.01),
        "freq_over_10_percent": share(density > 0.1),
    }


def density_histogram(fired: Tensor, tokens: int) -> list[int]:
    """Histogram of the latents that fire, by the share of tokens that they fire on: see `Quality.density`."""
    log = (fired[fired > 0].double() / max(1, tokens)).log10()
    bins = ((log + DECADES) * BINS_PER_DECADE).floor().clamp(0, DECADES * BINS_PER_DECADE - 1).long()
    return torch.bincount(bins, minlength=DECADES * BINS_PER_DECADE).tolist()


def _add_positions(by_position: dict[str, dict[str, float]], values: Mapping[str, Tensor]) -> None:
    for metric, tensor in values.items():
        for name, value in zip(by_position, tensor.tolist(), strict=True):
            by_position[name][metric] = value


def as_json(value: Any) -> Any:
    """Plain values for JSON; a number that is not finite is null."""
    if isinstance(value, dict):
        return {key: as_json(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
