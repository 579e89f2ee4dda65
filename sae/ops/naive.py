"""The operations of this folder in plain PyTorch: what they mean, and what their tests hold them against."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def topk(
    pre_acts: Float[Tensor, "tokens latents"], k: int
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """The k largest entries of each row, negative ones replaced by 0."""
    values, indices = pre_acts.topk(k, dim=-1, sorted=False)
    return values.relu(), indices


def decode(
    acts: Float[Tensor, "tokens k"], indices: Int[Tensor, "tokens k"], W: Float[Tensor, "latents d_out"]
) -> Float[Tensor, "tokens d_out"]:
    """out[n] = Σ_i acts[n, i] · W[indices[n, i]]."""
    return (acts.unsqueeze(-1) * W[indices]).sum(1)


def gather_dot(
    rows: Float[Tensor, "tokens d"], indices: Int[Tensor, "tokens k"], W: Float[Tensor, "latents d"]
) -> Float[Tensor, "tokens k"]:
    """out[n, i] = ⟨rows[n], W[indices[n, i]]⟩."""
    return (rows.unsqueeze(1) * W[indices]).sum(-1)


def segment_sum(
    weights: Float[Tensor, "tokens k"],
    indices: Int[Tensor, "tokens k"],
    rows: Float[Tensor, "tokens d"],
    num_latents: int,
) -> Float[Tensor, "latents d"]:
    """out[j] = Σ over the (n, i) with indices[n, i] = j of weights[n, i] · rows[n]."""
    out = rows.new_zeros(num_latents, rows.shape[1])
    return out.index_add_(0, indices.flatten(), (weights.unsqueeze(-1) * rows.unsqueeze(1)).flatten(0, 1))


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
    """Step number `step` (from 1) of Adam, in place; nothing happens where found_inf is not 0.

    With `radial`, ⟨grad, param⟩ of each row, the rows have unit length: the part of the gradient along a row is left
    out, and the new row is scaled to unit length. `copy` receives the new `param`, in its own type.
    Source: Kingma & Ba 2014, arXiv:1412.6980, algorithm 1.
    """
    if found_inf != 0:
        return
    if radial is not None:
        grad = grad - radial.unsqueeze(1) * param
    exp_avg.lerp_(grad, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    corrections = [1 - beta ** step.double() for beta in betas]
    denominator = (exp_avg_sq / corrections[1].to(param.dtype)).sqrt() + eps
    param.sub_(lr / corrections[0].to(param.dtype) * exp_avg / denominator)
    if radial is not None:
        param.div_(param.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(param.dtype).tiny))
    if copy is not None:
        copy.copy_(param)
