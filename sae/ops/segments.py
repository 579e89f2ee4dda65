"""Sums over the tokens on which each latent is active: the sparse gradients of encoder and decoder."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

import sae.ops.kernels as kernels


class PairSums(NamedTuple):
    """Sums over the entries (n, i) of each latent j, indices[n, i] = j."""

    a: Float[Tensor, "latents d"]
    """Σ weights_a[n, i] · rows_a[n]."""
    b: Float[Tensor, "latents d"]
    """Σ weights_b[n, i] · rows_b[n]."""
    weights_b: Float[Tensor, "latents"]
    """Σ weights_b[n, i]."""
    products: Float[Tensor, "latents"]
    """Σ weights_a[n, i] · weights_b[n, i]."""


class LatentSegments:
    """The entries of `indices` (tokens, k) sorted by latent: segment j lists the tokens that selected latent j.

    Sums run over each segment in the order of the tokens, so they are bitwise equal from run to run (no atomics).
    """

    def __init__(self, indices: Int[Tensor, "tokens k"], num_latents: int) -> None:
        flat = indices.flatten()
        self._latents, self._order = torch.sort(flat.int(), stable=True)
        self._tokens = self._order // indices.shape[1]
        boundaries = torch.arange(num_latents, device=flat.device, dtype=torch.int32)
        self._starts = torch.searchsorted(self._latents, boundaries)

    def sum(self, weights: Float[Tensor, "tokens k"], rows: Float[Tensor, "tokens d"]) -> Float[Tensor, "latents d"]:
        """out[j] = Σ over the (n, i) with indices[n, i] = j of weights[n, i] · rows[n]. Twin: `naive.segment_sum`."""
        ordered = weights.flatten()[self._order]
        with torch.no_grad():
            return F.embedding_bag(self._tokens, rows, self._starts, per_sample_weights=ordered, mode="sum")

    def sum_pair(
        self,
        weights_a: Float[Tensor, "tokens k"],
        rows_a: Float[Tensor, "tokens d"],
        weights_b: Float[Tensor, "tokens k"],
        rows_b: Float[Tensor, "tokens d"],
    ) -> PairSums:
        """Both sums and the sums of their weights; on a GPU in one pass over the entries, added up in float32."""
        if kernels.usable(weights_a, rows_a, weights_b, rows_b):
            import sae.ops.kernels.segments as fast

            pairs = (weights_a, rows_a, weights_b, rows_b)
            return PairSums(*fast.sum_pair(*pairs, latents=self._latents, order=self._order, bounds=self._ends()))
        return PairSums(
            a=self.sum(weights_a, rows_a),
            b=self.sum(weights_b, rows_b),
            weights_b=self.sum_weights(weights_b),
            products=self.sum_weights(weights_a * weights_b),
        )

    def sum_weights(self, weights: Float[Tensor, "tokens k"]) -> Float[Tensor, "latents"]:
        """out[j] = Σ over the (n, i) with indices[n, i] = j of weights[n, i]."""
        return torch.segment_reduce(weights.flatten()[self._order], "sum", offsets=self._ends(), initial=0)

    def _ends(self) -> Int[Tensor, "latents_plus_1"]:
        total = torch.full((1,), len(self._order), device=self._starts.device, dtype=self._starts.dtype)
        return torch.cat([self._starts, total])
