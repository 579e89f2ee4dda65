"""Sums of weighted rows of a dictionary, and their gradient, in C. Twins: `sae.ops.naive.decode` and `gather_dot`."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.ops.native import over_rows, readable

_LEAST_PRODUCTS = 2**16
"""Entries times columns from which the call is worth it."""


def covers(indices: Int[Tensor, "*entries"], *matrices: Tensor) -> bool:
    """Whether C reads these matrices, float32, and it is worth it. `indices` must be of rows of the last one."""
    enough = indices.numel() * matrices[-1].shape[-1] >= _LEAST_PRODUCTS
    if not enough or not all(readable(matrix) for matrix in matrices):
        return False
    least, most = indices.aminmax()
    return bool(least >= 0 and most < len(matrices[-1]))


def decode(
    acts: Float[Tensor, "*entries"],
    indices: Int[Tensor, "*entries"],
    starts: Int[Tensor, "bags_plus_1"],
    W: Float[Tensor, "latents d_out"],
) -> Float[Tensor, "bags d_out"]:
    """out[b] = Σ acts[e] · W[indices[e]] over the entries e from starts[b] to starts[b + 1]."""
    out = torch.empty(len(starts) - 1, W.shape[1])
    over_rows("decode", out, (starts, indices.contiguous(), acts.contiguous(), W, W.stride(0)))
    return out


def gather_dot(
    rows: Float[Tensor, "bags d"],
    indices: Int[Tensor, "*entries"],
    starts: Int[Tensor, "bags_plus_1"],
    W: Float[Tensor, "latents d"],
) -> Float[Tensor, "*entries"]:
    """out[e] = ⟨rows[b], W[indices[e]]⟩ for the entries e from starts[b] to starts[b + 1]."""
    out = torch.empty(indices.shape)
    over_rows("gather_dot", rows, (rows.stride(0), starts, indices.contiguous(), W, W.stride(0), out))
    return out
