"""Sums of a few weighted rows of a dictionary, and the dot products that are their gradient."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

import sae.ops.kernels as kernels
import sae.ops.naive as naive
import sae.ops.native.bags as native


def decode(
    acts: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], W: Float[Tensor, "latents d_out"]
) -> Float[Tensor, "tokens d_out"]:
    """out[n] = Σ_i acts[n, i] · W[indices[n, i]], without gradients. Twin: `naive.decode`."""
    if kernels.usable(acts, W):
        import sae.ops.kernels.decode as fast

        return fast.decode(acts, indices, W)
    if native.covers_decode(acts, indices, W):
        return native.decode(acts, indices, _starts(indices), W)
    with torch.no_grad():
        return F.embedding_bag(indices, W, per_sample_weights=acts, mode="sum")


def gather_dot(
    rows: Float[Tensor, "tokens d"], indices: Int[Tensor, "tokens k"], W: Float[Tensor, "latents d"]
) -> Float[Tensor, "tokens k"]:
    """out[n, i] = ⟨rows[n], W[indices[n, i]]⟩, without gradients. Twin: `naive.gather_dot`."""
    if kernels.usable(rows, W):
        import sae.ops.kernels.decode as fast

        return fast.gather_dot(rows, indices, W)
    if rows.dtype not in (torch.float32, torch.float64):
        return naive.gather_dot(rows, indices, W)
    if native.covers_gather_dot(rows, indices, W, len(indices)):
        return native.gather_dot(rows, indices, _starts(indices), W)
    tokens, k = indices.shape
    bag_starts = torch.arange(0, tokens * k, k, device=indices.device)
    bag_of = torch.arange(tokens, device=indices.device).repeat_interleave(k, output_size=tokens * k)
    # The gradient of embedding_bag to its weights is this gather-dot: nine times W[indices] and a product on a CPU.
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        rows, W, indices.flatten(), bag_starts, bag_of, 0, -1
    ).view(tokens, k)


def _starts(indices: Int[Tensor, "tokens k"]) -> Int[Tensor, "tokens_plus_1"]:
    """Where the entries of each token begin, and where they end."""
    tokens, k = indices.shape
    return torch.arange(tokens + 1, device=indices.device) * k
