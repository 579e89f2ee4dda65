"""Exact top-k of rows from the maxima of groups of columns.

Three kernels: the maximum of each group (the only one that reads all of a row), the k groups with the largest maxima,
and the k largest of their members. Values are compared as keys: integers of the same width, order-preserving on what
ReLU leaves of them. The k-th largest key is found by bisection, so nothing is ever sorted.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae.ops.kernels.launch import ceil_div, on_device_of, power_of_two


class Format(NamedTuple):
    """How the bits of a floating-point type, read as a signed integer, say that it is NaN."""

    bits: torch.dtype
    minus_infinity: int
    """The largest integer that is a negative number; larger negative integers are NaNs with a sign."""
    nan: int
    """A NaN without sign: larger than all numbers."""


FORMATS = {
    torch.bfloat16: Format(torch.int16, -0x80, 0x7FC0),
    torch.float16: Format(torch.int16, -0x400, 0x7E00),
    torch.float32: Format(torch.int32, -0x80_0000, 0x7FC0_0000),
}
MAX_KEYS = 2**14
"""How many keys a program selects among, at most: they live in its registers."""


@triton.jit
@no_type_check
def _load_keys(bits, mask, MINUS_INFINITY: tl.constexpr, NAN: tl.constexpr):
    """int32 keys: the bits of ReLU(value), which keeps NaN; 0 where masked."""
    loaded = tl.load(bits, mask=mask, other=0).to(tl.int32)
    return tl.where((loaded < 0) & (loaded > MINUS_INFINITY), NAN, tl.maximum(loaded, 0))


@triton.jit
@no_type_check
def _select(keys, low, K: tl.constexpr):
    """Which K of the keys (n,) are largest, among equal ones the first, and the rank of each of these by position.

    `low` is a lower bound of the K-th largest. Fewer than 2¹⁶ keys.
    """
    high = tl.max(keys, 0)
    while low < high:
        middle = low + (high - low) // 2 + 1
        count = tl.sum((keys >= middle).to(tl.int32), 0)
        high = tl.where(count == K, middle, tl.where(count > K, high, middle - 1))
        low = tl.where(count >= K, middle, low)
    above = (keys > low).to(tl.int32)
    ties_kept = K - tl.sum(above, 0)
    # One scan counts both: those above in the upper 16 bits, ties in the lower.
    counts = tl.cumsum(above * 65536 + (keys == low).to(tl.int32), 0)
    ties = counts & 65535
    keep = (keys > low) | ((keys == low) & (ties <= ties_kept))
    return keep, (counts >> 16) + tl.minimum(ties, ties_kept) - 1


@triton.jit
@no_type_check
def _group_maxima_kernel(
    bits,
    maxima,
    M: tl.constexpr,
    GROUPS: tl.constexpr,
    G: tl.constexpr,
    MINUS_INFINITY: tl.constexpr,
    NAN: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    """Program (n, s): keys of the maxima of groups s·BLOCK_GROUPS… of row n; group g has columns g·G … g·G + G − 1."""
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    cols = groups[:, None] * G + tl.arange(0, G)[None, :]
    keys = _load_keys(bits + row * M + cols, cols < M, MINUS_INFINITY, NAN)
    tl.store(maxima + row * GROUPS + groups, tl.max(keys, 1), mask=groups < GROUPS)


@triton.jit
@no_type_check
def _best_groups_kernel(maxima, best, GROUPS: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Program n: the K groups of row n with the largest maxima, in ascending order."""
    row = tl.program_id(0).to(tl.int64)
    groups = tl.arange(0, BLOCK)
    keys = tl.load(maxima + row * GROUPS + groups, mask=groups < GROUPS, other=-1).to(tl.int32)
    keep, rank = _select(keys, tl.full([], 0, tl.int32), K)
    tl.store(best + row * K + rank, groups, mask=keep)


@triton.jit
@no_type_check
def _candidates_kernel(
    bits,
    best,
    values,
    indices,
    M: tl.constexpr,
    K: tl.constexpr,
    G: tl.constexpr,
    MINUS_INFINITY: tl.constexpr,
    NAN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program n: the K largest members of the K best groups of row n, as bits, and their columns, ascending."""
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, BLOCK_K)
    groups = tl.load(best + row * K + slots, mask=slots < K, other=0)
    cols = groups[:, None] * G + tl.arange(0, G)[None, :]
    inside = (slots < K)[:, None] & (cols < M)
    keys = tl.where(inside, _load_keys(bits + row * M + cols, inside, MINUS_INFINITY, NAN), -1)
    # Each of the K groups has a member at least as large as the smallest of their maxima.
    low = tl.min(tl.where(slots < K, tl.max(keys, 1), NAN), 0)
    keys = tl.reshape(keys, [BLOCK_K * G])
    keep, rank = _select(keys, low, K)
    tl.store(values + row * K + rank, keys, mask=keep)
    tl.store(indices + row * K + rank, tl.reshape(cols, [BLOCK_K * G]).to(tl.int64), mask=keep)


def group_size(num_latents: int, k: int) -> int | None:
    """Columns per group: what leaves the fewest keys to select among; None if nothing leaves few enough.

    Among equals the largest, for which the first kernel writes, and the second reads, least. To tune: larger groups.
    """
    sizes = {
        g: (power_of_two(ceil_div(num_latents, g)), power_of_two(k) * g)
        for g in (8, 16, 32, 64, 128)
        if ceil_div(num_latents, g) >= k
    }
    fitting = {g: sum(keys) for g, keys in sizes.items() if max(keys) <= MAX_KEYS}
    return min(fitting, key=lambda g: (fitting[g], -g), default=None)


def covers(num_latents: int, k: int) -> bool:
    """Whether these kernels select k of num_latents: not, for one, where k is a large part of them."""
    return group_size(num_latents, k) is not None


def _warps(keys: int) -> int:
    """Warps of a program that selects among `keys`: 32 keys a thread; 16 were up to 6 % slower on an H100."""
    return min(16, max(1, keys // (32 * 32)))


GROUP_MAXIMA_ELEMENTS = 4096
"""Elements a program of the first kernel reads, with 4 warps: 32 a thread. To tune: 2048 to 8192."""


def topk(
    pre_acts: Float[Tensor, "tokens latents"], k: int
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest entries of each row, negative ones replaced by 0; indices ascend. Twin: `naive.topk`.

    Among equal entries the first columns of the first groups win. Raises ValueError unless `covers`.
    """
    tokens, num_latents = pre_acts.shape
    group = group_size(num_latents, k)
    if group is None:
        raise ValueError(f"these kernels do not cover k={k} of {num_latents} latents; use sae.ops.topk")
    fmt, num_groups = FORMATS[pre_acts.dtype], ceil_div(num_latents, group)
    bits = pre_acts.contiguous().view(fmt.bits)
    maxima = torch.empty(tokens, num_groups, dtype=fmt.bits, device=bits.device)
    best = torch.empty(tokens, k, dtype=torch.int32, device=bits.device)
    values = torch.empty(tokens, k, dtype=pre_acts.dtype, device=bits.device)
    indices = torch.empty(tokens, k, dtype=torch.int64, device=bits.device)
    if tokens == 0:
        return values, indices
    nan = {"MINUS_INFINITY": fmt.minus_infinity, "NAN": fmt.nan}
    block_groups = min(GROUP_MAXIMA_ELEMENTS // group, power_of_two(num_groups))
    groups_padded, k_padded = power_of_two(num_groups), power_of_two(k)
    with on_device_of(bits):
        _group_maxima_kernel[(tokens, ceil_div(num_groups, block_groups))](
            bits, maxima, M=num_latents, GROUPS=num_groups, G=group, BLOCK_GROUPS=block_groups, num_warps=4, **nan
        )
        _best_groups_kernel[(tokens,)](
            maxima, best, GROUPS=num_groups, K=k, BLOCK=groups_padded, num_warps=_warps(groups_padded)
        )
        _candidates_kernel[(tokens,)](
            bits,
            best,
            values.view(fmt.bits),
            indices,
            M=num_latents,
            K=k,
            G=group,
            BLOCK_K=k_padded,
            num_warps=_warps(k_padded * group),
            **nan,
        )
    return values, indices
