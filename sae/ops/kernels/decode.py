"""Sums of a few weighted rows of a dictionary, and the dot products that are their gradient."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae.ops.kernels.launch import ceil_div, on_device_of, power_of_two, slice_width, warps_across


@triton.jit
@no_type_check
def _decode_kernel(
    acts, indices, W, out, K: tl.constexpr, D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Program (n, s): columns s·BLOCK_D… of out[n]. BLOCK_K rows are in flight at once; rows with act 0 are skipped."""
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, K, BLOCK_K):
        slots = first + tl.arange(0, BLOCK_K)
        act = tl.load(acts + token * K + slots, mask=slots < K, other=0.0).to(tl.float32)
        latent = tl.load(indices + token * K + slots, mask=slots < K, other=0).to(tl.int64)
        mask = (act != 0)[:, None] & (cols < D)[None, :]
        rows = tl.load(W + latent[:, None] * D + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(act[:, None] * rows, 0)
    tl.store(out + token * D + cols, total, mask=cols < D)


def _decode_blocks(W: Tensor, k: int) -> dict[str, int]:
    """To tune: BLOCK_K 8, 16, 32 (rows in flight; registers limit it) and the limits of `slice_width`."""
    width = slice_width(W.shape[1], len(W) * W.element_size())
    return {
        "BLOCK_D": width,
        "BLOCK_K": min(16, power_of_two(k)),
        "num_warps": warps_across(width, W.element_size()),
    }


def decode(
    acts: Float[Tensor, "tokens k"],
    indices: Int[Tensor, "tokens k"],
    W: Float[Tensor, "latents d_out"],
) -> Float[Tensor, "tokens d_out"]:
    """out[n] = Σ_i acts[n, i] · W[indices[n, i]], in the type that acts · W has. Twin: `naive.decode`.

    Entries with act 0 contribute 0, even where W is not finite.
    """
    (tokens, k), d = acts.shape, W.shape[1]
    out = torch.empty(tokens, d, dtype=torch.promote_types(acts.dtype, W.dtype), device=W.device)
    blocks = _decode_blocks(W, k)
    if tokens:
        with on_device_of(W):
            _decode_kernel[(tokens, ceil_div(d, blocks["BLOCK_D"]))](
                acts.contiguous(), indices.contiguous(), W.contiguous(), out, K=k, D=d, **blocks
            )
    return out


@triton.jit
@no_type_check
def _gather_dot_kernel(
    rows, indices, W, out, K: tl.constexpr, D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Program (n, s): dot products s·BLOCK_K… of token n. Each thread adds up its columns, then the threads do."""
    token = tl.program_id(0).to(tl.int64)
    slots = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    latent = tl.load(indices + token * K + slots, mask=slots < K, other=0).to(tl.int64)
    total = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for first in range(0, D, BLOCK_D):
        cols = first + tl.arange(0, BLOCK_D)
        row = tl.load(rows + token * D + cols, mask=cols < D, other=0.0).to(tl.float32)
        mask = (slots < K)[:, None] & (cols < D)[None, :]
        gathered = tl.load(W + latent[:, None] * D + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        total += gathered * row[None, :]
    tl.store(out + token * K + slots, tl.sum(total, 1), mask=slots < K)


def _gather_dot_blocks(W: Tensor, k: int) -> dict[str, int]:
    """The fastest of the sizes tried on an H100, or within 5 % of it, in bf16 and fp32 (benchmarks/NOTES.md)."""
    return {"BLOCK_D": min(128, power_of_two(W.shape[1])), "BLOCK_K": min(16, power_of_two(k)), "num_warps": 2}


def gather_dot(
    rows: Float[Tensor, "tokens d"],
    indices: Int[Tensor, "tokens k"],
    W: Float[Tensor, "latents d"],
) -> Float[Tensor, "tokens k"]:
    """out[n, i] = ⟨rows[n], W[indices[n, i]]⟩, in the type that rows · W has. Twin: `naive.gather_dot`."""
    (tokens, k), d = indices.shape, W.shape[1]
    out = torch.empty(tokens, k, dtype=torch.promote_types(rows.dtype, W.dtype), device=W.device)
    blocks = _gather_dot_blocks(W, k)
    if tokens:
        with on_device_of(W):
            _gather_dot_kernel[(tokens, ceil_div(k, blocks["BLOCK_K"]))](
                rows.contiguous(), indices.contiguous(), W.contiguous(), out, K=k, D=d, **blocks
            )
    return out
