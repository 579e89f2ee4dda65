"""Sums of weighted rows of a dictionary, and their gradient, in C. Twins: `sae.ops.naive.decode` and `gather_dot`."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.ops.native import empty, over_rows, readable

_LEAST_PRODUCTS = 2**16
"""Entries times columns from which the call is worth it."""


def covers_decode(acts: Tensor, indices: Tensor, W: Tensor) -> bool:
    """Whether C reads these, which fit each other, and it is worth it."""
    return acts.shape == indices.shape and acts.is_cpu and acts.dtype == W.dtype and _reads(indices, W)


def covers_gather_dot(rows: Tensor, indices: Tensor, W: Tensor, bags: int) -> bool:
    """Whether C reads these, which fit each other, and it is worth it. There are so many `bags`."""
    return rows.shape == (bags, W.shape[1]) and readable(rows) and _reads(indices, W)


def _reads(indices: Tensor, W: Tensor) -> bool:
    """Whether the indices are whole numbers of 64 bits, all of rows of W, which is float32, and there are many."""
    plain = indices.is_cpu and indices.dtype == torch.int64 and readable(W)
    if not plain or indices.numel() * W.shape[1] < _LEAST_PRODUCTS:
        return False
    least, most = indices.aminmax()
    return bool(least >= 0 and most < len(W))


def decode(
    acts: Float[Tensor, "*entries"],
    indices: Int[Tensor, "*entries"],
    starts: Int[Tensor, "bags_plus_1"],
    W: Float[Tensor, "latents d_out"],
) -> Float[Tensor, "bags d_out"]:
    """out[b] = Σ acts[e] · W[indices[e]] over the entries e from starts[b] to starts[b + 1]."""
    out = empty(len(starts) - 1, W.shape[1])
    over_rows("decode", out, (starts, indices.contiguous(), acts.contiguous(), W, W.stride(0)))
    return out


def gather_dot(
    rows: Float[Tensor, "bags d"],
    indices: Int[Tensor, "*entries"],
    starts: Int[Tensor, "bags_plus_1"],
    W: Float[Tensor, "latents d"],
) -> Float[Tensor, "*entries"]:
    """out[e] = ⟨rows[b], W[indices[e]]⟩ for the entries e from starts[b] to starts[b + 1]."""
    out = empty(*indices.shape)
    over_rows("gather_dot", rows, (rows.stride(0), starts, indices.contiguous(), W, W.stride(0), out))
    return out
