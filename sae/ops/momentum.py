"""An optimizer's passes over the rows of a matrix of latents: its moments, and the step itself."""

import torch
from jaxtyping import Float
from torch import Tensor

import sae.ops.kernels as kernels
import sae.ops.native as native
from sae.ops.segments import Segments


def momentum_(
    exp_avg: Float[Tensor, "rows d"],
    exp_avg_sq: Float[Tensor, "rows"],
    gradient: Float[Tensor, "rows d"] | Segments,
    *,
    tangent: tuple[Float[Tensor, "rows"], Float[Tensor, "rows d"]] | None = None,
    rates: Float[Tensor, "rows"] | None = None,
    skip: Float[Tensor, ""],
    beta1: float,
    beta2: float,
    epsilon: float,
    out: Float[Tensor, "rows d"],
) -> Float[Tensor, ""]:
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) mean g² of each row, out = rates · m / √(√v + ε); returns Σ out².

    `tangent` is (along, matrix): g is then gradient − along · matrix, row by row. `skip` is 1 to leave m and v as they
    are, whatever the gradient. m and `out` may have other types; what else is computed comes before they are rounded.
    The gradient may be `Segments` where `native.usable`.
    """
    if native.usable(exp_avg_sq) and not skip:
        import sae.ops.native.momentum as compiled

        if compiled.covers(gradient, exp_avg, out):
            return compiled.momentum_(
                exp_avg,
                exp_avg_sq,
                gradient,
                tangent=tangent,
                rates=rates,
                beta1=beta1,
                beta2=beta2,
                epsilon=epsilon,
                out=out,
            )
    assert isinstance(gradient, Tensor)
    if _kernels_cover(gradient, exp_avg):
        import sae.ops.kernels.momentum as fast

        return fast.momentum_(
            exp_avg,
            exp_avg_sq,
            gradient,
            tangent=tangent,
            rates=rates,
            skip=skip,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            out=out,
        )
    if tangent is not None:
        gradient = without_radial(gradient, *tangent)
    if not skip.is_cpu or skip:  # towards itself, a moment does not move
        gradient = torch.where(skip > 0, exp_avg, gradient)
    moment = exp_avg.to(gradient.dtype).lerp_(gradient, 1 - beta1)
    mean_square = torch.linalg.vector_norm(gradient, dim=1).square_().div_(gradient.shape[1])
    exp_avg_sq.lerp_(mean_square, (1 - beta2) * (1 - skip))
    scale = exp_avg_sq.sqrt().add_(epsilon).rsqrt_()
    if rates is not None:
        scale.mul_(rates)
    torch.mul(moment, scale.unsqueeze(1), out=out)
    exp_avg.copy_(moment)
    return (torch.linalg.vector_norm(moment, dim=1) * scale).square_().sum()


def without_radial(
    gradient: Float[Tensor, "rows d"], along: Float[Tensor, "rows"], matrix: Float[Tensor, "rows d"]
) -> Float[Tensor, "rows d"]:
    """gradient − along · matrix, row by row."""
    return torch.addcmul(gradient, matrix, along.unsqueeze(1), value=-1)


def descend_(
    parameter: Float[Tensor, "rows d"],
    step: Float[Tensor, "rows d"],
    length: Float[Tensor, ""],
    *,
    skip: Float[Tensor, ""],
    unit_rows: bool = False,
    copy: Float[Tensor, "rows d"] | None = None,
    factors: Float[Tensor, "rows"] | None = None,
    follower: tuple[Float[Tensor, "rows d"], Float[Tensor, ""]] | None = None,
) -> None:
    """parameter ← factors · parameter − length · step, its rows then of unit length if wanted, and the same in `copy`.

    `follower` is another matrix and its length of the same step. `skip` is 1 to change nothing but by `factors`.
    """
    if native.usable(parameter) and not skip:
        import sae.ops.native.momentum as compiled

        return compiled.descend_(
            parameter, step, length, unit_rows=unit_rows, copy=copy, factors=factors, follower=follower
        )
    if factors is not None:
        parameter.mul_(factors.unsqueeze(1))
    if follower is not None:
        descend_(follower[0], step, follower[1], skip=skip)
    if _kernels_cover(parameter, step):
        import sae.ops.kernels.momentum as fast

        return fast.descend_(parameter, step, length, skip=skip, unit_rows=unit_rows, copy=copy)
    parameter.addcmul_(step.to(parameter.dtype), -length * (1 - skip))
    settle_(parameter, unit_rows=unit_rows, copy=copy)


def settle_(
    parameter: Float[Tensor, "rows *d"], *, unit_rows: bool, copy: Float[Tensor, "rows *d"] | None = None
) -> None:
    """The end of a step: rows of unit length if wanted, and the same in `copy`."""
    if unit_rows:
        length = torch.linalg.vector_norm(parameter, dim=-1, keepdim=True)
        parameter.div_(length.clamp_min_(torch.finfo(parameter.dtype).tiny))
    if copy is not None:
        copy.copy_(parameter)


def _kernels_cover(matrix: Tensor, other: Tensor) -> bool:
    """The kernels hold a row in registers; all but m, `step` and the copies is float32."""
    if matrix.dtype != torch.float32 or not kernels.usable(matrix, other):
        return False
    import sae.ops.kernels.momentum as fast

    return matrix.shape[1] <= fast.MAX_COLUMNS
