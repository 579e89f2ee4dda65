"""The threshold of batchtopk: the value above which k latents of a token stay, in the mean over tokens.

A batch's own threshold is its (tokens · k)-th largest activation. It would make a step depend on how it is split, and
does not exist at inference. This one is the same quantile over the steps before. It comes from a histogram of the
activations, which adds up over parts and ranks and forgets old steps. Training and inference use the same number.
"""

import torch
from jaxtyping import Float
from torch import Tensor

PER_OCTAVE = 64
"""Bins of the histogram for each factor of two; inside a bin the count is interpolated."""
_LOWEST, _HIGHEST = -24, 24
"""Exponents of two that bound the histogram's range of activations."""
_KEPT = 0.7
"""Share of the earlier steps' weight that a step leaves."""


class RunningThreshold:
    """A histogram of activations, weighted towards the newest steps, and the quantile that keeps k of a token."""

    def __init__(self, device: torch.device) -> None:
        bins = (_HIGHEST - _LOWEST) * PER_OCTAVE
        self.counts = torch.zeros(bins + 1, dtype=torch.float64, device=device)
        """Activations in each bin, lowest first, and the tokens last: moving sums with weights that decay."""
        self.step_counts = torch.zeros_like(self.counts)
        """Counts over the tokens of the step so far. Parts of the step may be added."""

    def add(self, acts: Float[Tensor, "tokens width"]) -> None:
        """Count the positive activations of these tokens, selected or not."""
        flat = acts.flatten().float()
        at = ((flat.clamp_min(2.0**_LOWEST).log2() - _LOWEST) * PER_OCTAVE).long().clamp_(0, len(self.counts) - 2)
        self.step_counts.index_add_(0, at, (flat > 0).double())
        self.step_counts[-1] += len(acts)

    def end_step(self) -> None:
        """Let the step's activations count."""
        self.counts.mul_(_KEPT).add_(self.step_counts)
        self.step_counts.zero_()

    def value(self, k: float) -> Float[Tensor, ""]:
        """The least activation that stays when k per token do; 0 where fewer are positive. Waits for nothing."""
        counts, tokens = self.counts[:-1], self.counts[-1]
        above = counts.flip(0).cumsum(0).flip(0)  # in this bin and higher ones
        wanted = k * tokens
        bin_of = ((above >= wanted).sum() - 1).clamp_min(0)
        inside = ((above[bin_of] - wanted) / counts[bin_of].clamp_min(1e-12)).clamp(0, 1)
        value = 2.0 ** ((bin_of + inside) / PER_OCTAVE + _LOWEST)
        return torch.where((above[0] >= wanted) & (tokens > 0), value, 0.0).float()
