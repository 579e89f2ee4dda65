"""The dense autoencoder in float64 with autograd: what every fast path is held against."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sae import Sae, SaeConfig


class Oracle(NamedTuple):
    """Loss, reconstruction and the gradient of every parameter."""

    loss: Tensor
    recon: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


def make_sae(d_in: int = 48, num_latents: int = 96, k: int = 5, dtype: torch.dtype = torch.float64) -> Sae:
    """An autoencoder in general position: no bias is 0 and encoder and decoder differ."""
    sae = Sae(d_in, SaeConfig(num_latents=num_latents, k=k), dtype=dtype)
    with torch.no_grad():
        sae.encoder.weight.add_(0.1 * torch.randn_like(sae.encoder.weight))
        sae.encoder.bias.add_(0.3 * torch.randn_like(sae.encoder.bias))
        sae.b_dec.add_(torch.randn_like(sae.b_dec))
    return sae


def dense_code(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int) -> Tensor:
    """TopK(ReLU((x − b_dec) W_encᵀ + b_enc)) as a dense (tokens, latents) tensor."""
    pre_acts = (x - b_dec) @ W_enc.T + b_enc
    kept = torch.zeros_like(pre_acts).scatter(-1, pre_acts.topk(k).indices, 1.0)
    return pre_acts.relu() * kept


def dense_gradients(
    sae: Sae,
    x: Tensor,
    *,
    scale: float = 1.0,
    limit: float = math.inf,
    auxk_scale: float = 0.0,
    dead: Tensor | None = None,
) -> Oracle:
    """scale · Σ s ‖x̂ − x‖² + auxk_scale · Σ‖ê − e‖² and its gradients, all by autograd over dense tensors.

    The share s of each token is held constant: 1, or so small that s ‖x − b_dec‖ ‖x̂ − x‖ is at the limit.
    """
    W_enc, b_enc, W_dec, b_dec = (
        p.detach().double().requires_grad_() for p in (sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec)
    )
    x = x.double()
    recon = dense_code(x, W_enc, b_enc, b_dec, sae.cfg.k) @ W_dec + b_dec
    errors = (recon - x).square().sum(1)
    shares = (limit / ((x - b_dec).square().sum(1) * errors).sqrt()).clamp(max=1.0).detach()
    loss = scale * (shares * errors).sum()
    if dead is not None and len(dead):
        e = (x - recon).detach()
        k_aux = min(sae.d_in // 2, len(dead))
        e_hat = dense_code(x, W_enc[dead], b_enc[dead], b_dec, k_aux) @ W_dec[dead]
        loss = loss + auxk_scale * (e_hat - e).square().sum()
    return Oracle(loss.detach(), recon.detach(), *torch.autograd.grad(loss, (W_enc, b_enc, W_dec, b_dec)))


def level_weights(levels: int, *, budgets: bool) -> list[float]:
    """Weights of the squared errors of nested reconstructions; they add up to 1. The largest budget has most."""
    found = [*[1.0] * (levels - 1), 2.0] if budgets else [1.0] * levels
    return [weight / sum(found) for weight in found]
