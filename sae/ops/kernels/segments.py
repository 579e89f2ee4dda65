"""Sums over the tokens on which each latent is active, for two pairs of weights and rows in one pass.

A latent that very many tokens selected would keep one program busy long after all others are done. So the sorted
entries are cut into pieces of fixed length at fixed places. A first kernel sums the pieces that lie within a single
segment. A second one, with a program per latent, adds what is left before and after them.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae.ops.kernels.launch import ceil_div, on_device_of, power_of_two, slice_width, warps_across


@triton.jit
@no_type_check
def _add_entries(
    sum_a,
    sum_b,
    weight_b,
    product,
    start,
    end,
    order,
    weights_a,
    rows_a,
    weights_b,
    rows_b,
    cols,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Add the sorted entries start … end − 1 to Σ w_a·row_a, Σ w_b·row_b and, by lanes, to Σ w_b and Σ w_a·w_b."""
    first = start
    while first < end:
        entries = first + tl.arange(0, BLOCK_E)
        position = tl.load(order + entries, mask=entries < end, other=0).to(tl.int32)
        w_a = tl.load(weights_a + position, mask=entries < end, other=0.0).to(tl.float32)
        w_b = tl.load(weights_b + position, mask=entries < end, other=0.0).to(tl.float32)
        at = (position // K).to(tl.int64)[:, None] * D + cols[None, :]
        inside = (cols < D)[None, :]
        a = tl.load(rows_a + at, mask=(w_a != 0)[:, None] & inside, other=0.0).to(tl.float32)
        b = tl.load(rows_b + at, mask=(w_b != 0)[:, None] & inside, other=0.0).to(tl.float32)
        sum_a += tl.sum(w_a[:, None] * a, 0)
        sum_b += tl.sum(w_b[:, None] * b, 0)
        weight_b += w_b
        product += w_a * w_b
        first += BLOCK_E
    return sum_a, sum_b, weight_b, product


@triton.jit
@no_type_check
def _pieces_kernel(
    latents,
    order,
    weights_a,
    rows_a,
    weights_b,
    rows_b,
    piece_a,
    piece_b,
    piece_weight_b,
    piece_product,
    K: tl.constexpr,
    D: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (p, s): the sums over entries p·PIECE … (p + 1)·PIECE − 1, if all of them are of one latent."""
    piece = tl.program_id(0).to(tl.int64)
    start = piece * PIECE
    if tl.load(latents + start) == tl.load(latents + start + PIECE - 1):
        cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        sums, lanes = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_E], tl.float32)
        sum_a, sum_b, weight_b, product = _add_entries(
            sums, sums, lanes, lanes, start, start + PIECE,
            order, weights_a, rows_a, weights_b, rows_b, cols, K, D, BLOCK_E,
        )  # fmt: skip
        tl.store(piece_a + piece * D + cols, sum_a, mask=cols < D)
        tl.store(piece_b + piece * D + cols, sum_b, mask=cols < D)
        if tl.program_id(1) == 0:
            tl.store(piece_weight_b + piece, tl.sum(weight_b, 0))
            tl.store(piece_product + piece, tl.sum(product, 0))


@triton.jit
@no_type_check
def _latents_kernel(
    bounds,
    order,
    weights_a,
    rows_a,
    weights_b,
    rows_b,
    piece_a,
    piece_b,
    piece_weight_b,
    piece_product,
    out_a,
    out_b,
    out_weight_b,
    out_product,
    K: tl.constexpr,
    D: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (j, s): the sums of latent j: entries before its first whole piece, its pieces, entries after them."""
    latent = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start, end = tl.load(bounds + latent).to(tl.int64), tl.load(bounds + latent + 1).to(tl.int64)
    piece, pieces_end = (start + PIECE - 1) // PIECE, end // PIECE
    has_pieces = piece < pieces_end
    sums, lanes = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_E], tl.float32)
    sum_a, sum_b, weight_b, product = _add_entries(
        sums, sums, lanes, lanes, start, tl.where(has_pieces, piece * PIECE, end),
        order, weights_a, rows_a, weights_b, rows_b, cols, K, D, BLOCK_E,
    )  # fmt: skip
    if has_pieces:
        first_lane = tl.arange(0, BLOCK_E) == 0
        while piece < pieces_end:
            sum_a += tl.load(piece_a + piece * D + cols, mask=cols < D, other=0.0)
            sum_b += tl.load(piece_b + piece * D + cols, mask=cols < D, other=0.0)
            weight_b += tl.where(first_lane, tl.load(piece_weight_b + piece), 0.0)
            product += tl.where(first_lane, tl.load(piece_product + piece), 0.0)
            piece += 1
        sum_a, sum_b, weight_b, product = _add_entries(
            sum_a, sum_b, weight_b, product, pieces_end * PIECE, end,
            order, weights_a, rows_a, weights_b, rows_b, cols, K, D, BLOCK_E,
        )  # fmt: skip
    tl.store(out_a + latent * D + cols, sum_a, mask=cols < D)
    tl.store(out_b + latent * D + cols, sum_b, mask=cols < D)
    if tl.program_id(1) == 0:
        tl.store(out_weight_b + latent, tl.sum(weight_b, 0))
        tl.store(out_product + latent, tl.sum(product, 0))


PIECES_BYTES = 64 * 2**20
"""Memory for the sums of pieces, about: 8·d bytes a piece, whether it lies within one segment or not."""


def _blocks(rows_a: Tensor, rows_b: Tensor, entries: int) -> dict[str, int]:
    """To tune: BLOCK_E (twice as many rows in flight; registers limit it), shortest PIECE, limits of `slice_width`."""
    tokens, d = rows_a.shape
    width = slice_width(d, tokens * (rows_a.element_size() + rows_b.element_size()))
    return {
        "BLOCK_D": width,
        "BLOCK_E": 8,
        "PIECE": max(512, power_of_two(entries * d * 8 // PIECES_BYTES)),
        "num_warps": warps_across(width, max(rows_a.element_size(), rows_b.element_size())),
    }


def sum_pair(
    weights_a: Float[Tensor, "tokens k"],
    rows_a: Float[Tensor, "tokens d"],
    weights_b: Float[Tensor, "tokens k"],
    rows_b: Float[Tensor, "tokens d"],
    *,
    latents: Int[Tensor, "entries"],
    order: Int[Tensor, "entries"],
    bounds: Int[Tensor, "latents_plus_1"],
    piece: int | None = None,
) -> tuple[Float[Tensor, "latents d"], Float[Tensor, "latents d"], Float[Tensor, "latents"], Float[Tensor, "latents"]]:
    """Over the entries e of each latent, in float32: Σ w_a[e]·row_a[e], Σ w_b[e]·row_b[e], Σ w_b[e], Σ w_a[e]·w_b[e].

    `order` sorts the tokens · k < 2³¹ entries by latent, `latents` are the sorted ones, and those of latent j are
    bounds[j] … bounds[j + 1] − 1. Entries of weight 0 contribute 0, even where the row is not finite. `piece`: entries
    per piece, a power of two; chosen by the shapes if None. Twin: `LatentSegments.sum_pair` on a CPU.
    """
    k, d, num_latents, entries = weights_a.shape[1], rows_a.shape[1], len(bounds) - 1, len(order)
    blocks = _blocks(rows_a, rows_b, entries)
    blocks["PIECE"] = piece or blocks["PIECE"]
    num_pieces, num_slices = entries // blocks["PIECE"], ceil_div(d, blocks["BLOCK_D"])

    def sums(count: int) -> list[Tensor]:
        shapes = [(count, d), (count, d), (count,), (count,)]
        return [torch.empty(shape, dtype=torch.float32, device=rows_a.device) for shape in shapes]

    inputs = [t.contiguous() for t in (order, weights_a, rows_a, weights_b, rows_b)]
    pieces, out = sums(num_pieces), sums(num_latents)
    with on_device_of(rows_a):
        if num_pieces:
            _pieces_kernel[(num_pieces, num_slices)](latents, *inputs, *pieces, K=k, D=d, **blocks)
        _latents_kernel[(num_latents, num_slices)](bounds, *inputs, *pieces, *out, K=k, D=d, **blocks)
    sum_a, sum_b, weight_b, product = out
    return sum_a, sum_b, weight_b, product
