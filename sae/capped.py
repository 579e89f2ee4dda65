"""Adam for matrices whose largest common directions are capped: what the default recipe trains W_enc and W_dec with.

The gradients of all latents share directions: those in which the activations vary most. Along them the rows of a matrix
move together, which is where a step goes too far first, while in all others it could be longer. Muon (Jordan et al.
2024, kellerjordan.github.io/posts/muon) makes all singular values of a step equal; here the largest are brought down to
the mean of the others, and the step is then scaled to the length that the learning rate says. The directions are
followed from step to step by orthogonal iteration, as in Dion (Ahn et al. 2025, arXiv:2504.05295), so a step costs
8 · latents · d_in · RANK operations a matrix, whatever d_in, and no decomposition but a QR of (d_in, RANK).
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sae.optim import EPSILON, Adam, Gradient, slices
from sae.peers import ALONE, Peers

RANK = 128
"""Directions of a matrix that are followed; a quarter of d_in where that is less."""

_LEAST = 1e-3
"""The least that τ² may be, in units of the mean of ‖U q‖² over all directions: a step may have only a few."""


class CappedAdam(Adam):
    """Adam on vectors. On matrices (latents, d_in), with Adam's m and, of each row, Adam's v of its mean square,

        U = m / √(√v + ε), times the rate of each row;
        U ← U − Σⱼ (1 − min(1, τ / σⱼ)) U qⱼ qⱼᵀ;
        W ← W − lr · rate · U / rms(U).

    The qⱼ are `RANK` orthonormal directions in which U is longest, σⱼ = ‖U qⱼ‖, and τ² the mean of ‖U q‖² over the
    other directions. √√v, where Adam has √v, raises rows of little gradient half as much. `lr · rate` is the root mean
    square of a matrix's step. The state is half of Adam's: one second moment a row, as in Adafactor (Shazeer & Stern
    2018, arXiv:1804.04235), whose columns' the cap makes superfluous.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        beta1: float,
        beta2: float,
        product_dtype: torch.dtype = torch.float32,
        peers: Peers = ALONE,
    ) -> None:
        """`parameters` as of `Adam`; U is held and multiplied in `product_dtype`. `peers` hold other rows of them."""
        super().__init__(parameters, beta1=beta1, beta2=beta2)
        self._product_dtype, self._peers = product_dtype, peers
        matrices = {name: p for name, p in self._parameters.items() if p.dim() == 2}
        self.exp_avg_sq |= {name: p.new_zeros(len(p)) for name, p in matrices.items()}
        self.basis = {name: _first_basis(p) for name, p in matrices.items()}
        """(d_in, rank) of each matrix: the directions qⱼ."""
        self._entries = {name: peers.total(self._parameters[name].numel()) for name in self.basis}

    def _update(self, name: str, grad: Gradient, lr: float, skip: Float[Tensor, ""]) -> None:
        if name not in self.basis:
            return super()._update(name, grad, lr, skip)
        parameter, rate = self._parameters[name], lr * self.rates.get(name, 1.0)
        step, total = self._normalised(name, grad, skip)
        along, basis, kept, energy = self._leading(step, total, self.basis[name])
        length = rate * math.sqrt(self._entries[name]) / energy.sqrt() * (1 - skip)
        removed = (along * (kept - 1)).to(step.dtype), basis.T.to(step.dtype)
        for some in slices(parameter):
            parameter[some].addcmul_(torch.addmm(step[some], removed[0][some], removed[1]).to(parameter.dtype), -length)
        self.basis[name].copy_(torch.where(skip > 0, self.basis[name], basis))

    def _normalised(
        self, name: str, grad: Gradient, skip: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, "latents d_in"], Float[Tensor, ""]]:
        """Bring the moments up to date; returns U before its cap, in `product_dtype`, and Σ U² over these rows."""
        parameter, rates, (beta1, beta2) = self._parameters[name], self.row_rates.get(name), self._betas
        step, total = torch.empty_like(parameter, dtype=self._product_dtype), parameter.new_zeros(())
        for some in slices(parameter):
            exp_avg, exp_avg_sq, part = self.exp_avg[name][some], self.exp_avg_sq[name][some], grad[some]
            if not skip.is_cpu:  # where `step` does not ask: towards itself, a moment does not move
                part = torch.where(skip > 0, exp_avg, part)
            exp_avg.lerp_(part, 1 - beta1)
            mean_square = torch.linalg.vector_norm(part, dim=1).square_().div_(part.shape[1])
            exp_avg_sq.lerp_(mean_square, (1 - beta2) * (1 - skip))
            scale = exp_avg_sq.sqrt().add_(EPSILON).rsqrt_()
            if rates is not None:
                scale.mul_(rates[some])
            total += (torch.linalg.vector_norm(exp_avg, dim=1) * scale).square_().sum()
            torch.mul(exp_avg, scale.unsqueeze(1), out=step[some])
        return step, total

    def _leading(
        self, step: Float[Tensor, "latents d_in"], total: Float[Tensor, ""], basis: Float[Tensor, "d_in rank"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One orthogonal iteration from `basis`: (U q of all q, the new basis, min(1, τ / σ), Σ U² after the cap)."""
        product = self._peers.sum_
        longer = (step @ basis.to(step.dtype)).T @ step  # half of the time of its transpose
        basis = torch.linalg.qr(product(longer.float()).T).Q
        along = (step @ basis.to(step.dtype)).float()
        sums = product(torch.cat([along.square().sum(0), total.unsqueeze(0)]))
        energies, total = sums[:-1], sums[-1]
        tiny, others = torch.finfo(torch.float32).tiny, basis.shape[0] - basis.shape[1]
        tail = (total - energies.sum()) / max(1, others)
        tail = torch.maximum(tail, _LEAST * total / basis.shape[0]).clamp_min(tiny)
        kept = (tail / energies.clamp_min(tiny)).sqrt().clamp_max(1.0)
        outside = (total - energies.sum()).clamp_min(0)
        return along, basis, kept, (outside + (energies * kept.square()).sum()).clamp_min(tiny)

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's, and the directions of each matrix."""
        return super().state_dict() | {f"{name}.basis": basis for name, basis in self.basis.items()}


def _first_basis(parameter: Float[Tensor, "latents d_in"]) -> Float[Tensor, "d_in rank"]:
    """Random orthonormal directions, the same for all matrices of a width."""
    d_in = parameter.shape[1]
    noise = torch.randn(d_in, min(RANK, d_in // 4), generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(noise).Q.to(parameter.device)
