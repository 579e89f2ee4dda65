"""Nested reconstructions of one code: x̂_j decodes those entries whose level is at most j.

Prefixes (Matryoshka, Bussmann et al. 2025, arXiv:2503.17547): the level follows the latent's number, and the j-th
dictionary is the first `ends[j]` latents. Budgets (Hierarchical, 2025, arXiv:2505.24473): the level follows the rank
within the token. The loss is a weighted mean of the levels' squared errors; an entry of level b is pulled by Σ_{j ≥ b}
w_j (x̂_j − y) / Σ w.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.config import SaeConfig
from sae.dictionary.shards import WHOLE, LatentShards, ranks

LARGEST_BUDGET = 2.0
"""Weight of the largest budget's squared error; the others have 1. With equal weights, as published, the largest is 6 %
behind a dictionary of its own, with this one half as much (docs/family.md)."""


class Levels(NamedTuple):
    """Ends of the nested reconstructions, increasing; the last is the whole code."""

    ends: tuple[int, ...]
    by_rank: bool
    """Ends are ranks within a token (budgets), not latents (prefixes)."""

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each level's squared error in the loss, a weighted mean. Those of prefixes are equal."""
        if not self.by_rank:
            return (1.0,) * len(self.ends)
        return *(1.0,) * (len(self.ends) - 1), LARGEST_BUDGET

    @classmethod
    def of(cls, cfg: SaeConfig, num_latents: int, k: int) -> "Levels | None":
        """The levels that `cfg` asks for, with k latents a token; None for one reconstruction."""
        ends = cfg.levels_for(num_latents)
        if cfg.budgets:  # while k grows, larger budgets are not reached yet
            ends = [end for end in ends if end < k] + [k]
        return cls(tuple(ends), bool(cfg.budgets)) if len(ends) > 1 else None

    def at(
        self,
        acts: Float[Tensor, "tokens width"],
        indices: Int[Tensor, "tokens width"],
        shards: LatentShards = WHOLE,
    ) -> Int[Tensor, "tokens width"]:
        """The level of each entry, from 0. Ties of rank are broken by the order of the entries.

        `shards` have the other entries, and `indices` count from the first latent here.
        """
        if self.by_rank:
            number = ranks(acts, shards, most=self.ends[-1])
        else:
            number = indices + shards.part * (self.ends[-1] // shards.parts)
        return torch.bucketize(number, torch.tensor(self.ends, device=number.device), right=True)


def level_weights(levels: Levels | None) -> tuple[float, ...]:
    """Weight of each nested reconstruction in the loss; of one alone, if there are no levels."""
    return (1.0,) if levels is None else levels.weights
