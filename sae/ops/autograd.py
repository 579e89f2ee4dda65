"""The hot operations for autograd: what users and end-to-end losses differentiate through."""

from typing import Any

import torch
from torch import Tensor

from sae.ops.decode import decode, gather_dot
from sae.ops.encode import Select, encode
from sae.ops.segments import LatentSegments


class EncodeFunction(torch.autograd.Function):
    """(x, W_enc, b_enc, select) -> (top_acts, top_indices), with gradients through `top_acts` only.

    A latent that was selected with value 0 did not fire and passes no gradient (ReLU).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select) -> tuple[Tensor, Tensor]:
        values, indices = encode(x, W_enc, b_enc, select)
        ctx.save_for_backward(x, W_enc, values, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_values: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, values, indices = ctx.saved_tensors
        grad_pre = torch.where(values > 0, grad_values, 0)
        grad_x = decode(grad_pre, indices, W_enc) if ctx.needs_input_grad[0] else None
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad_x, None, None, None
        segments = LatentSegments(indices, len(W_enc))
        return grad_x, segments.sum(grad_pre, x), segments.sum_weights(grad_pre), None


class DecodeFunction(torch.autograd.Function):
    """(top_acts, top_indices, W_dec) -> Σ_i top_acts[:, i] · W_dec[top_indices[:, i]]."""

    @staticmethod
    def forward(ctx: Any, acts: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(acts, indices, W_dec)
        return decode(acts, indices, W_dec)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        acts, indices, W_dec = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        grad_acts = gather_dot(grad_out, indices, W_dec) if ctx.needs_input_grad[0] else None
        grad_W = LatentSegments(indices, len(W_dec)).sum(acts, grad_out) if ctx.needs_input_grad[2] else None
        return grad_acts, None, grad_W
