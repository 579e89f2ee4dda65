"""Adam for matrices whose largest common directions are capped: what the default recipe trains W_enc and W_dec with.

The gradients of all latents share directions: those in which the activations vary most. Along them the rows of a matrix
move together. There a step goes too far first, while along all others it could be longer. Muon (Jordan et al. 2024,
kellerjordan.github.io/posts/muon) makes all singular values of a step equal. Here the largest are brought down to the
mean of the others. The step is then scaled to the length that the learning rate says. The directions are followed from
step to step by orthogonal iteration over some of the rows, as in Dion (Ahn et al. 2025, arXiv:2504.05295). So a step
costs 4 · (latents + 8 · d_in) · d_in · RANK operations a matrix, and no decomposition but a QR of (d_in, RANK).
"""

import math
from collections.abc import Collection, Iterable, Mapping
from threading import local
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary.shards import WHOLE, LatentShards
from sae.ops import native
from sae.ops.momentum import descend_, momentum_
from sae.ops.segments import SegmentRows
from sae.training.adam import EPSILON, Adam, Gradient, Tangent, slices

RANK = 128
"""Directions of a matrix that are followed; a quarter of d_in where that is less."""

_ROWS_TO_FOLLOW = 8
"""Rows, in units of d_in, that the directions are followed by: with 18,432 rows of 576 every fourth. After 244 steps of
2048 tokens the FVU is the same as by all rows, 0.1107 (SmolLM2, block 10, k 32); by 1152 rows 0.1115."""

_LEAST = 1e-3
"""Lower bound of τ², in units of the mean of ‖U q‖² over all directions: a step may have only a few directions."""

_IN_CACHE = 2048
"""Rows of U q that are squared at a time on a CPU."""

_SLIGHT = 1e-5
"""Share of the last step's directions in this step's, beside their product of length 1."""


class CappedAdam(Adam):
    """Adam for vectors. For matrices (latents, d_in), with Adam's m, and for each row Adam's v of its mean square,

        U = m / √(√v + ε), times the rate of each row;
        U ← U − Σⱼ (1 − min(1, τ / σⱼ)) U qⱼ qⱼᵀ;
        W ← W − lr · rate · U / rms(U).

    The qⱼ are `RANK` orthonormal directions in which U is longest, σⱼ = ‖U qⱼ‖, and τ² the mean of ‖U q‖² over the
    other directions. √√v, where Adam has √v, raises rows of little gradient half as much. `lr · rate` is the root mean
    square of a matrix's step. The state is half of Adam's: one second moment a row, as in Adafactor (Shazeer & Stern
    2018, arXiv:1804.04235). Adafactor's second moment of each column is not needed under a cap.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        beta1: float,
        beta2: float,
        unit_rows: Collection[str] = (),
        followers: Mapping[str, tuple[str, float]] = MappingProxyType({}),
        log_lengths: Mapping[str, str] = MappingProxyType({}),
        product_dtype: torch.dtype = torch.float32,
        shards: LatentShards = WHOLE,
        whole: Collection[str] = (),
    ) -> None:
        """`parameters` as for `Adam`, stepped in their order; m and U of matrices are held in `product_dtype`.

        `followers` is {leader: (follower, share)}: with each step of `leader`, the rows of `follower` move by `share`
        times it, beside their own step. The follower's own step must come later: it brings the copy up to date.
        `log_lengths` names, for a matrix, a parameter (latents,) that steps in the logarithm of its rows' length. Its
        steps are at most 1 each, beside what the matrix's own steps change of the length. That parameter comes earlier,
        and is 0 between steps. `shards` hold other rows, but of those that are `whole`.
        """
        self._product_dtype, self._shards, self._whole = product_dtype, shards, frozenset(whole)
        super().__init__(parameters, beta1=beta1, beta2=beta2, unit_rows=unit_rows)
        self._followers, self._log_lengths = followers, log_lengths
        matrices = {name: p for name, p in self._parameters.items() if p.dim() == 2}
        self.basis = {name: _first_basis(p) for name, p in matrices.items()}
        """(d_in, rank) of each matrix: the directions qⱼ."""
        self._entries = {name: self._shards_of(name).total(p.numel()) for name, p in matrices.items()}
        self._strides = {name: _stride(self._entries[name], matrices[name].shape[1]) for name in self.basis}

    def _shards_of(self, name: str) -> LatentShards:
        """Who holds the other rows of a matrix."""
        return WHOLE if name in self._whole else self._shards

    def _first_moment(self, parameter: Tensor) -> Tensor:
        return parameter.new_zeros(parameter.shape, dtype=self._product_dtype if parameter.dim() == 2 else None)

    def _second_moment(self, parameter: Tensor) -> Tensor:
        return parameter.new_zeros(len(parameter)) if parameter.dim() == 2 else super()._second_moment(parameter)

    def _update(self, name: str, grad: Gradient, lr: float | Tensor, skip: Float[Tensor, ""]) -> None:
        if name not in self.basis:
            return super()._update(name, grad, lr, skip)
        parameter, rate = self._parameters[name], lr * self.rates.get(name, 1.0)
        basis, dtype, shards = self.basis[name], self._product_dtype, self._shards_of(name)
        step, along = _workspace(parameter, basis.shape[1], dtype)
        total = self._momentum(name, grad, skip, out=step)
        some = step[:: self._strides[name]]
        basis = _orthonormal(shards.sum_(((some @ basis.to(dtype)).T @ some).float()).T, basis)
        torch.mm(step, basis.to(dtype), out=along)
        kept, energy = _cap(along, total, shards, others=basis.shape[0] - basis.shape[1])
        length = rate * math.sqrt(self._entries[name]) / energy.sqrt()
        removed = (basis * (kept - 1)).T.to(dtype)
        step.addmm_(along, removed)
        self._descend(name, step, length, skip)
        self.basis[name].copy_(torch.where(skip > 0, self.basis[name], basis))

    def _descend(
        self, name: str, step: Float[Tensor, "latents d_in"], length: Float[Tensor, ""], skip: Float[Tensor, ""]
    ) -> None:
        """Take a step of this length, and bring along what follows it."""
        parameter, (follower, share) = self._parameters[name], self._followers.get(name, (None, 0.0))
        log_length = self._parameters.get(self._log_lengths.get(name, ""))
        factors = None if log_length is None else log_length.clamp(-1.0, 1.0).exp()
        for some in _parts(parameter):
            descend_(
                parameter[some],
                step[some],
                length,
                skip=skip,
                unit_rows=name in self._unit_rows,
                copy=self._copy(name, some),
                factors=None if factors is None else factors[some],
                follower=None if follower is None else (self._parameters[follower][some], length * share),
            )
        if log_length is not None:
            log_length.zero_()

    def _momentum(
        self, name: str, grad: Gradient, skip: Float[Tensor, ""], *, out: Float[Tensor, "latents d_in"]
    ) -> Float[Tensor, ""]:
        """Bring the moments up to date, and write U before its cap; returns Σ U² over these rows."""
        parameter, rates, (beta1, beta2) = self._parameters[name], self.row_rates.get(name), self._betas
        raw = grad.gradient if isinstance(grad, Tangent) else grad
        segments = raw.segments if isinstance(raw, SegmentRows) else None
        if segments is not None and not (native.usable(parameter) and native.readable(segments.rows)):
            segments = None
        total = parameter.new_zeros(())
        for some in slices(parameter) if segments is None else [slice(None)]:
            total += momentum_(
                self.exp_avg[name][some],
                self.exp_avg_sq[name][some],
                raw[some] if segments is None else segments,
                tangent=(grad.along[some], grad.matrix[some]) if isinstance(grad, Tangent) else None,
                rates=None if rates is None else rates[some],
                skip=skip,
                beta1=beta1,
                beta2=beta2,
                epsilon=EPSILON,
                out=out[some],
            )
        return total

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's, and the directions of each matrix."""
        return super().state_dict() | {f"{name}.basis": basis for name, basis in self.basis.items()}


def _cap(
    along: Float[Tensor, "latents rank"], total: Float[Tensor, ""], shards: LatentShards, *, others: int
) -> tuple[Float[Tensor, "rank"], Float[Tensor, ""]]:
    """(min(1, τ / σ), Σ U² after the cap) from U q of all q, Σ U² before, and the number of other directions."""
    chunk = min(len(along), _IN_CACHE) if along.is_cpu else len(along)
    wide = torch.empty(chunk, along.shape[1], device=along.device)
    squares = (wide[: len(some)].copy_(some).square_() for some in along.split(chunk))
    energies = torch.stack([some.sum(0) for some in squares]).sum(0)
    sums = shards.sum_(torch.cat([energies, total.unsqueeze(0)]))
    energies, total = sums[:-1], sums[-1]
    tiny = torch.finfo(torch.float32).tiny
    outside = (total - energies.sum()).clamp_min(0)
    tail = torch.maximum(outside / max(1, others), _LEAST * total / (others + len(energies))).clamp_min(tiny)
    kept = (tail / energies.clamp_min(tiny)).sqrt().clamp_max(1.0)
    return kept, (outside + (energies * kept.square()).sum()).clamp_min(tiny)


def _orthonormal(columns: Float[Tensor, "d_in rank"], before: Float[Tensor, "d_in rank"]) -> Float[Tensor, "d_in rank"]:
    """An orthonormal basis of what the columns span."""
    return torch.linalg.qr(columns).Q if columns.is_cpu else cholesky_qr(columns, before)


def cholesky_qr(columns: Float[Tensor, "d_in rank"], before: Float[Tensor, "d_in rank"]) -> Float[Tensor, "d_in rank"]:
    """An orthonormal basis of approximately the columns' span; they are a positive semidefinite matrix times `before`.

    It comes from the Cholesky factor of their products, in float64: on a GPU a QR is many small operations one after
    the other. A little of the orthonormal `before` keeps it well-conditioned, and is the answer where the columns are
    0.
    """
    wide = columns.double()
    lengths = torch.linalg.vector_norm(wide, dim=0).clamp_min(torch.finfo(wide.dtype).tiny)
    wide = wide / lengths + _SLIGHT * before
    factor = torch.linalg.cholesky_ex(wide.T @ wide).L
    return torch.linalg.solve_triangular(factor, wide.T, upper=False).T.float().contiguous()


def _stride(entries: int, d_in: int) -> int:
    """From one row to the next of those that the directions of a matrix with so many entries are followed by."""
    return max(1, entries // (_ROWS_TO_FOLLOW * d_in**2))


class _Workspaces(local):
    """Memory that the steps of one thread share, by its type."""

    def __init__(self) -> None:
        self.kept: dict[torch.dtype, Tensor] = {}


_workspaces = _Workspaces()


def _workspace(
    parameter: Float[Tensor, "latents d_in"], rank: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "latents d_in"], Float[Tensor, "latents rank"]]:
    """Memory for U and for U q of all q. On a CPU a thread's steps share it: allocating costs more than filling."""
    (latents, d_in), kept = parameter.shape, _workspaces.kept.get(dtype)
    size = latents * (d_in + rank)
    if not parameter.is_cpu or kept is None or len(kept) < size:
        kept = torch.empty(size, dtype=dtype, device=parameter.device)
    if parameter.is_cpu:
        _workspaces.kept[dtype] = kept
    step, along = kept[:size].split([latents * d_in, latents * rank])
    return step.view(latents, d_in), along.view(latents, rank)


def _parts(parameter: Tensor) -> Iterable[slice]:
    """The rows that one pass takes: all where it holds but one at a time."""
    return [slice(None)] if native.usable(parameter) else slices(parameter)


def _first_basis(parameter: Float[Tensor, "latents d_in"]) -> Float[Tensor, "d_in rank"]:
    """Random orthonormal directions, the same for all matrices of a width."""
    d_in = parameter.shape[1]
    noise = torch.randn(d_in, min(RANK, d_in // 4), generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(noise).Q.to(parameter.device)
