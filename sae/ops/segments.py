"""Sums over the tokens on which each latent is active: the sparse gradients of encoder and decoder."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


class LatentSegments:
    """The entries of `indices` (tokens, k) sorted by latent: segment j lists the tokens that selected latent j.

    Sums run over each segment in the order of the tokens, so they are bitwise equal from run to run (no atomics).
    """

    def __init__(self, indices: Int[Tensor, "tokens k"], num_latents: int) -> None:
        flat = indices.flatten()
        latents, self._order = torch.sort(flat.int(), stable=True)
        self._tokens = self._order // indices.shape[1]
        boundaries = torch.arange(num_latents, device=flat.device, dtype=torch.int32)
        self._starts = torch.searchsorted(latents, boundaries)

    def sum(self, weights: Float[Tensor, "tokens k"], rows: Float[Tensor, "tokens d"]) -> Float[Tensor, "latents d"]:
        """out[j] = Σ over the (n, i) with indices[n, i] = j of weights[n, i] · rows[n]. Twin: `naive.segment_sum`."""
        ordered = weights.flatten()[self._order]
        with torch.no_grad():
            return F.embedding_bag(self._tokens, rows, self._starts, per_sample_weights=ordered, mode="sum")

    def sum_weights(self, weights: Float[Tensor, "tokens k"]) -> Float[Tensor, "latents"]:
        """out[j] = Σ over the (n, i) with indices[n, i] = j of weights[n, i]."""
        return torch.segment_reduce(weights.flatten()[self._order], "sum", offsets=self._ends(), initial=0)

    def _ends(self) -> Int[Tensor, "latents_plus_1"]:
        total = torch.full((1,), len(self._order), device=self._starts.device, dtype=self._starts.dtype)
        return torch.cat([self._starts, total])
