"""An optimizer's passes over the rows of a matrix: a program holds a row in its registers, read and written once."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sae.ops.kernels.launch import on_device_of, power_of_two

MAX_COLUMNS = 2**14
"""The widest row that a program holds."""


@triton.jit
@no_type_check
def _momentum_kernel(
    exp_avg,
    exp_avg_sq,
    gradient,
    along,
    matrix,
    rates,
    skip,
    out,
    energies,
    weight1,
    weight2,
    epsilon,
    D: tl.constexpr,
    TANGENT: tl.constexpr,
    RATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program j: row j of `momentum_`. weight1 and weight2 are 1 − β₁ and 1 − β₂."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside, at = cols < D, row * D + cols
    grad = tl.load(gradient + at, mask=inside, other=0.0)
    if TANGENT:
        grad -= tl.load(along + row) * tl.load(matrix + at, mask=inside, other=0.0)
    moment = tl.load(exp_avg + at, mask=inside, other=0.0).to(tl.float32)
    keep = tl.load(skip) > 0
    grad = tl.where(keep, moment, grad)
    moment += (grad - moment) * weight1
    square = tl.load(exp_avg_sq + row)
    square = tl.where(keep, square, square + (tl.sum(grad * grad, 0) / D - square) * weight2)
    scale = 1.0 / tl.sqrt(tl.sqrt(square) + epsilon)
    if RATED:
        scale *= tl.load(rates + row)
    tl.store(exp_avg + at, moment, mask=inside)
    tl.store(exp_avg_sq + row, square)
    tl.store(out + at, moment * scale, mask=inside)
    tl.store(energies + row, tl.sum(moment * moment, 0) * scale * scale)


def momentum_(
    exp_avg: Float[Tensor, "rows d"],
    exp_avg_sq: Float[Tensor, "rows"],
    gradient: Float[Tensor, "rows d"],
    *,
    tangent: tuple[Float[Tensor, "rows"], Float[Tensor, "rows d"]] | None,
    rates: Float[Tensor, "rows"] | None,
    skip: Float[Tensor, ""],
    beta1: float,
    beta2: float,
    epsilon: float,
    out: Float[Tensor, "rows d"],
) -> Float[Tensor, ""]:
    """`sae.ops.momentum.momentum_`, in one pass that reads and writes every element once. Twin: its plain path."""
    rows, d = exp_avg.shape
    energies = torch.empty(rows, dtype=torch.float32, device=exp_avg.device)
    along, matrix = (energies, energies) if tangent is None else tangent
    if rows:
        with on_device_of(exp_avg):
            _momentum_kernel[(rows,)](
                exp_avg,
                exp_avg_sq,
                gradient.contiguous(),
                along.contiguous(),
                matrix.contiguous(),
                energies if rates is None else rates.contiguous(),
                skip,
                out,
                energies,
                1 - beta1,
                1 - beta2,
                epsilon,
                D=d,
                TANGENT=tangent is not None,
                RATED=rates is not None,
                **_blocks(d),
            )
    return energies.sum()


@triton.jit
@no_type_check
def _descend_kernel(
    parameter,
    step,
    length,
    skip,
    copy,
    TINY: tl.constexpr,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    COPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program j: row j of `descend_`."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside, at = cols < D, row * D + cols
    before = tl.load(parameter + at, mask=inside, other=0.0)
    after = before - tl.load(length) * tl.load(step + at, mask=inside, other=0.0).to(tl.float32)
    if UNIT:
        after /= tl.maximum(tl.sqrt(tl.sum(after * after, 0)), TINY)
    after = tl.where(tl.load(skip) > 0, before, after)
    tl.store(parameter + at, after, mask=inside)
    if COPY:
        tl.store(copy + at, after, mask=inside)


def descend_(
    parameter: Float[Tensor, "rows d"],
    step: Float[Tensor, "rows d"],
    length: Float[Tensor, ""],
    *,
    skip: Float[Tensor, ""],
    unit_rows: bool,
    copy: Float[Tensor, "rows d"] | None,
) -> None:
    """`sae.ops.momentum.descend_`, in one pass that reads and writes every element once. Twin: its plain path."""
    rows, d = parameter.shape
    if rows:
        with on_device_of(parameter):
            _descend_kernel[(rows,)](
                parameter,
                step.contiguous(),
                length,
                skip,
                parameter if copy is None else copy,
                TINY=torch.finfo(torch.float32).tiny,
                D=d,
                UNIT=unit_rows,
                COPY=copy is not None,
                **_blocks(d),
            )


def _blocks(d: int) -> dict[str, int]:
    """16 elements of a row a thread, or fewer."""
    block = power_of_two(d)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}
