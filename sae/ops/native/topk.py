"""Exact top-k of bf16 in C, in one pass over the values. Twin: `sae.ops.naive.topk`."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.ops.native import empty, library, over_rows

_SLICES = 32
"""Columns in a group, at most; fewer where there would be less than 4 k groups."""


def slices_of(columns: int, k: int) -> int:
    """Columns in a group."""
    return min(_SLICES, columns // (4 * k))


def covers(pre_acts: Tensor, k: int) -> bool:
    """Whether C is the fastest way: bf16 on a CPU, of many more columns than are kept."""
    is_plain = pre_acts.is_cpu and pre_acts.dtype == torch.bfloat16 and pre_acts.is_contiguous()
    return is_plain and k > 0 and slices_of(pre_acts.shape[1], k) > 1 and library() is not None


def topk(
    pre_acts: Float[Tensor, "tokens latents"], k: int
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """`sae.ops.topk`; of equal values any."""
    tokens, columns = pre_acts.shape
    values = empty(tokens, k, dtype=pre_acts.dtype)
    indices = empty(tokens, k, dtype=torch.int64)
    over_rows("topk", pre_acts, (k, slices_of(columns, k), values, indices))
    return values, indices
