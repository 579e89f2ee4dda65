"""An optimizer's passes over the rows of a matrix, in C. Twin: the plain paths of `sae.ops.momentum`."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.ops.native import COPIES, over_rows, readable, usable
from sae.ops.segments import Segments


def covers(gradient: Tensor | Segments, *written: Tensor) -> bool:
    """Whether C reads this gradient and writes these types."""
    read = usable(gradient) if isinstance(gradient, Tensor) else readable(gradient.rows)
    return read and all(out.dtype in COPIES and out.is_contiguous() for out in written)


def momentum_(
    exp_avg: Float[Tensor, "rows d"],
    exp_avg_sq: Float[Tensor, "rows"],
    gradient: Float[Tensor, "rows d"] | Segments,
    *,
    tangent: tuple[Float[Tensor, "rows"], Float[Tensor, "rows d"]] | None,
    rates: Float[Tensor, "rows"] | None,
    beta1: float,
    beta2: float,
    epsilon: float,
    out: Float[Tensor, "rows d"],
) -> Float[Tensor, ""]:
    """`sae.ops.momentum.momentum_`, of which every element is read and written once; the rows of segments never are."""
    energies = torch.empty_like(exp_avg_sq)
    dense = gradient if isinstance(gradient, Tensor) else None
    parts: list[Tensor | int | None] = [None, None, None, None, 0]
    if not isinstance(gradient, Tensor):
        bounds, tokens, weights, rows = gradient
        parts = [bounds.contiguous(), tokens.contiguous(), weights.contiguous(), rows, rows.stride(0)]
    along, matrix = (None, None) if tangent is None else (part.contiguous() for part in tangent)
    rates = None if rates is None else rates.contiguous()
    arguments = (_is_bf16(exp_avg), exp_avg_sq, dense, *parts, along, matrix, rates, 1 - beta1, 1 - beta2, epsilon)
    over_rows("momentum", exp_avg, (*arguments, out, _is_bf16(out), energies))
    return energies.sum()


def descend_(
    parameter: Float[Tensor, "rows d"],
    step: Float[Tensor, "rows d"],
    length: Float[Tensor, ""],
    *,
    unit_rows: bool,
    copy: Float[Tensor, "rows d"] | None,
    factors: Float[Tensor, "rows"] | None,
    follower: tuple[Float[Tensor, "rows d"], Float[Tensor, ""]] | None,
) -> None:
    """`sae.ops.momentum.descend_`, of which every element is read and written once."""
    other, its_length = (None, 0.0) if follower is None else (follower[0], float(follower[1]))
    factors = None if factors is None else factors.contiguous()
    taken = (step, _is_bf16(step), float(length), factors, int(unit_rows), copy, _is_bf16(copy), other, its_length)
    over_rows("descend", parameter, taken)


def _is_bf16(tensor: Tensor | None) -> int:
    return int(tensor is not None and tensor.dtype == torch.bfloat16)
