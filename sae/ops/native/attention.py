"""Attention in bf16 on a CPU, in C, without gradients: where the processor multiplies bf16 and has no matrix units."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from sae.ops.native import computes_here, empty, has_memory, library, over_rows

_KEYS = 64
"""Keys that are packed together."""
_VECTOR, _WIDEST = 16, 256
"""A head has a multiple of so many numbers, and at most so many."""


@cache
def has_attention() -> bool:
    """Whether there is compiled code, and it has a part for this processor."""
    built = library()
    return built is not None and bool(built.has_attention())


def covers(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `attend` takes these: bf16 on a CPU, as many keys as queries, heads of one width."""
    if not computes_here() or not all(has_memory(x) and x.dtype == torch.bfloat16 for x in (q, k, v)):
        return False
    if q.ndim != 4 or k.shape != v.shape or not all(x.stride(-1) == 1 and x.numel() for x in (q, k, v)):
        return False
    batch, heads, seq, width = q.shape
    fits = k.shape == (batch, k.shape[1], seq, width) and heads % k.shape[1] == 0
    return fits and width % _VECTOR == 0 and width <= _WIDEST and has_attention()


@torch.no_grad()
def attend(
    q: Float[Tensor, "batch heads seq width"],
    k: Float[Tensor, "batch kv_heads seq width"],
    v: Float[Tensor, "batch kv_heads seq width"],
    *,
    scale: float,
    causal: bool,
) -> Float[Tensor, "batch seq heads width"]:
    """softmax(scale · q·k) v (Vaswani et al. 2017, arXiv:1706.03762); `causal`: of keys up to a query's own place.

    Scores and sums are in float32, blocks of keys one after the other (Dao et al. 2022, arXiv:2205.14135). Weights are
    rounded to bf16 before they meet v, as PyTorch's are. Queries share the heads of keys where there are fewer.
    Denormal numbers count as 0. Results are bitwise the same for any number of threads and of sequences.
    """
    (batch, heads, seq, width), kv_heads = q.shape, k.shape[1]
    size = (seq + _KEYS - 1) // _KEYS * _KEYS * width
    keys, values = (empty(batch * kv_heads, size, dtype=torch.bfloat16) for _ in range(2))
    over_rows("pack_heads", keys, (values, k, *k.stride()[:3], v, *v.stride()[:3], seq, kv_heads, width))
    out = empty(batch * seq, heads * width, dtype=torch.bfloat16)
    sizes = (size, seq, width, kv_heads, int(causal), float(scale))
    over_rows("attend", out, (q, *q.stride()[:3], keys, values, *sizes))
    return out.view(batch, seq, heads, width)
