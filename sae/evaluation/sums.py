"""Sums over tokens. They grow without end, and merge exactly over batches and ranks."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.evaluation.moments import Moments

BINS_PER_OCTAVE, LOWEST, HIGHEST = 16, -40, 60
"""Bins of a token's squared distance from the mean: from 2⁻⁴⁰ to 2⁶⁰, each 4.4 % wide."""

RECONSTRUCTION = (
    "tokens", "squared_error", "variance", "cosine", "norm_ratio", "recon_energy", "overlap", "massive",
    "ordinary_fired", "ordinary_squared_error", "ordinary_variance",
)  # fmt: skip
"""Quantities summed over each sequence's tokens: 1, ‖x − x̂‖², ‖x − mean‖², cos(x, x̂), ‖x̂‖ / ‖x‖, ‖x̂‖², x·x̂, 1 if it
is massive. Of the ordinary ones also latents that fired, ‖x − x̂‖² and ‖x − their mean‖²."""

PREDICTION = (
    "tokens", "kl", "agree", "kl_zero", "kl_mean", "predicted", "ce_clean", "ce", "ce_zero", "ce_mean",
)  # fmt: skip
"""Quantities summed over each sequence's tokens: 1, KL(clean ‖ grafted), 1 where both have the same most likely next
token, the KLs of the ablations. Where the next token is known also 1 and its cross-entropies."""

BY_POSITION = ("tokens", "kl", "predicted", "ce_clean", "ce")
"""Sums of `PREDICTION` that are kept by position too."""


class ActivationSums(NamedTuple):
    """Distribution of the variance of the activations at one hookpoint."""

    by_dimension: Float[Tensor, "d"]
    """Σ (x − mean)² of each dimension."""
    histogram: Float[Tensor, "bins 2"]
    """Tokens, and the sum of their ‖x − mean‖², by the size of ‖x − mean‖²."""

    @classmethod
    def of(cls, centred: Float[Tensor, "tokens d"]) -> "ActivationSums":
        """The sums of tokens x − mean."""
        squares = centred.double().square()
        distance = squares.sum(-1)
        bins = ((distance.clamp_min(2.0**LOWEST).log2() - LOWEST) * BINS_PER_OCTAVE).long()
        histogram = squares.new_zeros((HIGHEST - LOWEST) * BINS_PER_OCTAVE, 2)
        histogram.index_add_(
            0, bins.clamp_max(len(histogram) - 1), torch.stack([torch.ones_like(distance), distance], -1)
        )
        return cls(squares.sum(0), histogram)

    @classmethod
    def zeros(cls, d: int) -> "ActivationSums":
        """The sums of no token."""
        return cls.of(torch.zeros(0, d))

    def top_dimensions_share(self, fraction: float) -> float:
        """The share of the variance in this fraction of the dimensions (at least one), the largest. Waits."""
        largest = self.by_dimension.sort(descending=True).values
        count = max(1, int(fraction * len(largest)))
        return (largest[:count].sum() / largest.sum()).item()

    def top_tokens_share(self, fraction: float) -> float:
        """The share of the variance in this fraction of the tokens, those farthest from the mean. Waits.

        Exact to the width of one bin: within it all tokens count as equal.
        """
        tokens, energy = self.histogram.flip(0).unbind(-1)
        left = fraction * tokens.sum() - (tokens.cumsum(0) - tokens)  # still to be taken when a bin's turn comes
        taken = (left / tokens.clamp_min(1)).clamp(0, 1)
        return ((taken * energy).sum() / energy.sum()).item()


class ReconstructionSums(NamedTuple):
    """Quality of one autoencoder's reconstructions, and how often each latent fires."""

    moments: Moments
    """Moments of `RECONSTRUCTION`."""
    fired: Int[Tensor, "latents"]
    """Tokens on which each latent fired."""
    by_position: Float[Tensor, "positions 3"]
    """Tokens, ‖x − x̂‖² and ‖x − mean‖², by `position_bin`."""
    partial_errors: Float[Tensor, "parts"]
    """‖x − x̂‖² over the ordinary tokens, of what parts of the dictionary reconstruct (`partial_names`)."""

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "batch seq d"],
        recon: Float[Tensor, "batch seq d"],
        fired: Int[Tensor, "batch seq"],
        counts: Int[Tensor, "latents"],
        mean: Float[Tensor, "d"],
        ordinary_mean: Float[Tensor, "d"],
        ordinary: Float[Tensor, "batch seq"],
        kept: Bool[Tensor, "batch seq"],
    ) -> "ReconstructionSums":
        """The sums of the tokens that are kept. `fired` counts a token's latents, `counts` a latent's kept tokens.

        `ordinary` is 1 for an ordinary token and 0 for a massive one.
        """
        squared_error, variance = (x - recon).square().sum(-1), (x - mean).square().sum(-1)
        overlap = (x * recon).sum(-1)
        norm, recon_norm = x.norm(dim=-1), recon.norm(dim=-1)
        tiny = torch.finfo(x.dtype).tiny
        per_token = torch.stack([
            torch.ones_like(overlap), squared_error, variance,
            overlap / (norm * recon_norm).clamp_min(tiny), recon_norm / norm.clamp_min(tiny),
            recon_norm.square(), overlap, 1 - ordinary.to(x.dtype),
            fired.to(x.dtype).where(ordinary > 0, 0), squared_error.where(ordinary > 0, 0),
            (x - ordinary_mean).square().sum(-1).where(ordinary > 0, 0),
        ], -1).double()  # fmt: skip
        per_token = per_token.where(kept.unsqueeze(-1), 0)
        return cls(Moments.of(per_token.sum(1)), counts, _by_position(per_token[..., :3]), per_token.new_zeros(0))

    @classmethod
    def zeros(cls, num_latents: int, seq: int, *, parts: int = 0) -> "ReconstructionSums":
        """The sums of no sequence."""
        counts = torch.zeros(num_latents, dtype=torch.int64)
        by_position, errors = _by_position(torch.zeros(0, seq, 3).double()), torch.zeros(parts, dtype=torch.float64)
        return cls(Moments.zeros(len(RECONSTRUCTION)), counts, by_position, errors)


class PredictionSums(NamedTuple):
    """Effect of grafting on the model's predictions."""

    moments: Moments
    """Moments of `PREDICTION`."""
    by_position: Float[Tensor, "positions 5"]
    """Sums of `BY_POSITION`, by `position_bin`."""

    @classmethod
    def of(cls, per_token: Float[Tensor, "batch seq 10"], kept: Bool[Tensor, "batch seq"]) -> "PredictionSums":
        """The sums of the tokens that are kept; `per_token` in the order of `PREDICTION`."""
        per_token = per_token.double().where(kept.unsqueeze(-1), 0)
        at = [PREDICTION.index(name) for name in BY_POSITION]
        return cls(Moments.of(per_token.sum(1)), _by_position(per_token[..., at]))

    @classmethod
    def zeros(cls, seq: int) -> "PredictionSums":
        """The sums of no sequence."""
        return cls(Moments.zeros(len(PREDICTION)), _by_position(torch.zeros(0, seq, len(BY_POSITION)).double()))


def position_bin(position: int) -> int:
    """Positions are taken together as 0, 1, 2–3, 4–7, 8–15, …: the number of the group."""
    return position.bit_length()


def position_names(seq: int) -> list[str]:
    """The names of the groups of positions of a sequence: "0", "1", "2-3", …."""
    starts = [0] + [2**bit for bit in range(max(0, seq - 1).bit_length())]
    ends = [min(2 * start, seq) - 1 if start else 0 for start in starts]
    return [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]


def _by_position(per_token: Float[Tensor, "batch seq values"]) -> Float[Tensor, "positions values"]:
    seq = per_token.shape[1]
    bins = torch.tensor([position_bin(position) for position in range(seq)], device=per_token.device)
    return per_token.new_zeros(position_bin(max(0, seq - 1)) + 1, per_token.shape[2]).index_add_(
        0, bins, per_token.sum(0)
    )
