"""One step of Adam on the rows of a matrix, in one pass over memory, for rows of unit length as well."""

import math
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sae.ops.kernels.launch import on_device_of, power_of_two


@triton.jit
@no_type_check
def _adam_rows_kernel(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    step,
    found_inf,
    radial,
    copy,
    lr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    TINY: tl.constexpr,
    UNIT_ROWS: tl.constexpr,
    COPY: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program j: row j."""
    if tl.load(found_inf) == 0:
        row = tl.program_id(0).to(tl.int64)
        cols = tl.arange(0, BLOCK_D)
        at, inside = row * D + cols, cols < D
        p = tl.load(param + at, mask=inside, other=0.0)
        g = tl.load(grad + at, mask=inside, other=0.0)
        m = tl.load(exp_avg + at, mask=inside, other=0.0)
        v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
        if UNIT_ROWS:
            g -= tl.load(radial + row) * p
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g * g
        # 1 − βᵗ in float64: in float32 it would lose four digits at t = 1.
        t = tl.load(step).to(tl.float64)
        correction1 = (1.0 - tl.exp(t * LOG_BETA1)).to(tl.float32)
        correction2 = (1.0 - tl.exp(t * LOG_BETA2)).to(tl.float32)
        p -= lr / correction1 * m / (tl.sqrt(v) / tl.sqrt(correction2) + EPS)
        if UNIT_ROWS:
            p /= tl.maximum(tl.sqrt(tl.sum(p * p, 0)), TINY)
        tl.store(param + at, p, mask=inside)
        tl.store(exp_avg + at, m, mask=inside)
        tl.store(exp_avg_sq + at, v, mask=inside)
        if COPY:
            tl.store(copy + at, p, mask=inside)


def _blocks(d: int) -> dict[str, int]:
    """A row lives in the registers of its program, four values an element: 16 elements a thread. To tune: num_warps."""
    width = power_of_two(d)
    return {"BLOCK_D": width, "num_warps": min(16, max(1, width // (32 * 16)))}


def adam_rows_(
    param: Float[Tensor, "rows d"],
    grad: Float[Tensor, "rows d"],
    exp_avg: Float[Tensor, "rows d"],
    exp_avg_sq: Float[Tensor, "rows d"],
    *,
    step: Float[Tensor, ""],
    found_inf: Float[Tensor, ""],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    radial: Float[Tensor, "rows"] | None = None,
    copy: Float[Tensor, "rows d"] | None = None,
) -> None:
    """Adam in place, all in float32, 28 bytes an element. Twin and meaning: `naive.adam_rows_`.

    Raises ValueError for a tensor that cannot be updated in place as it lies in memory.
    """
    written = [t for t in (param, grad, exp_avg, exp_avg_sq, copy) if t is not None]
    if not all(t.is_contiguous() for t in written) or any(t.dtype != torch.float32 for t in written[:4]):
        raise ValueError("adam_rows_ needs contiguous tensors, all but `copy` in float32; call it on the parameters")
    rows, d = param.shape
    with on_device_of(param):
        _adam_rows_kernel[(rows,)](
            param,
            grad,
            exp_avg,
            exp_avg_sq,
            step,
            found_inf,
            param if radial is None else radial,
            param if copy is None else copy,
            float(lr),
            LOG_BETA1=math.log(betas[0]),
            LOG_BETA2=math.log(betas[1]),
            BETA1=betas[0],
            BETA2=betas[1],
            EPS=eps,
            TINY=torch.finfo(torch.float32).tiny,
            UNIT_ROWS=radial is not None,
            COPY=copy is not None,
            D=d,
            **_blocks(d),
        )
