"""The operations of this folder in plain PyTorch: what they mean, and what their tests hold them against."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def topk(
    pre_acts: Float[Tensor, "tokens latents"], k: int
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest entries of each row, negative ones replaced by 0."""
    values, indices = pre_acts.topk(k, dim=-1, sorted=False)
    return values.relu(), indices


def decode(
    acts: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], W: Float[Tensor, "latents d_out"]
) -> Float[Tensor, "tokens d_out"]:
    """out[n] = Σ_i acts[n, i] · W[indices[n, i]]."""
    return (acts.unsqueeze(-1) * W[indices]).sum(1)


def gather_dot(
    rows: Float[Tensor, "tokens d"], indices: Int[Tensor, "tokens k"], W: Float[Tensor, "latents d"]
) -> Float[Tensor, "tokens k"]:
    """out[n, i] = ⟨rows[n], W[indices[n, i]]⟩."""
    return (rows.unsqueeze(1) * W[indices]).sum(-1)


def segment_sum(
    weights: Float[Tensor, "tokens k"],
    indices: Int[Tensor, "tokens k"],
    rows: Float[Tensor, "tokens d"],
    num_latents: int,
) -> Float[Tensor, "latents d"]:
    """out[j] = Σ over the (n, i) with indices[n, i] = j of weights[n, i] · rows[n]."""
    out = rows.new_zeros(num_latents, rows.shape[1])
    return out.index_add_(0, indices.flatten(), (weights.unsqueeze(-1) * rows.unsqueeze(1)).flatten(0, 1))


def extremes(
    left: Float[Tensor, "rows d"], right: Float[Tensor, "columns d"], number: int, bins: int
) -> tuple[Tensor, ...]:
    """The largest and the smallest entries of each row of left @ rightᵀ, where they are, and a histogram of the row."""
    product = torch.nan_to_num(left @ right.T, nan=0.0, posinf=0.0, neginf=0.0)
    top, bottom = product.topk(number, dim=1), product.topk(number, dim=1, largest=False)
    counts = [row.histc(bins).long() if number else row.new_zeros(bins, dtype=torch.int64) for row in product]
    stacked = torch.stack(counts) if counts else torch.zeros(0, bins, dtype=torch.int64, device=product.device)
    return *top, *bottom, stacked
