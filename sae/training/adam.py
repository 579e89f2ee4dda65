"""The optimizer of the biases and of `--recipe gao2024`: Adam, a few rows at a time."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sae.ops.momentum import settle_, without_radial

EPSILON = 6.25e-10
"""Adam's ε, from Gao et al. 2024, arXiv:2406.04093, app. A."""

_ROWS_BYTES = {"cpu": 2 * 2**20, "cuda": 256 * 2**20}
"""Bytes of a parameter that are stepped together. Its gradient may be computed for them, and with `row_rates` their old
values are kept; on a CPU both fit into the cache."""


@runtime_checkable
class Gradient(Protocol):
    """The gradient of a parameter, which gives some rows at a time. A tensor is one."""

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class Tangent:
    """The gradient of a matrix whose rows keep their unit length: without the part along each row."""

    gradient: Gradient
    along: Float[Tensor, "latents"]
    """⟨gradient, matrix⟩ of each row."""
    matrix: Float[Tensor, "latents d_in"]

    def __getitem__(self, rows: slice) -> Float[Tensor, "some d_in"]:
        """These rows."""
        return without_radial(self.gradient[rows], self.along[rows], self.matrix[rows])


class Adam:
    """Adam with the ε of Gao et al. 2024 (`EPSILON`); theirs are β₁ 0.9 and β₂ 0.999.

    PyTorch's own fused kernel, one pass over the memory, without `torch.optim`, whose import alone takes three seconds
    and 150 MB. The moments are made at once, all 0, so that they have a place in a state dict before the first step.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], *, beta1: float = 0.9, beta2: float, unit_rows: Collection[str] = ()
    ) -> None:
        """`parameters` by name, all on one device; they are updated in place. Rows of `unit_rows` keep unit length."""
        self._betas, self._unit_rows = (beta1, beta2), unit_rows
        self.copies: dict[str, Tensor] = {}
        """Copies in another type, by parameter, which follow every step."""
        self.rates: dict[str, float] = {}
        """Factors of the learning rate, by parameter."""
        self.row_rates: dict[str, Tensor] = {}
        """Factors of the steps of each row, (rows,), by parameter."""
        self._parameters = {name: parameter.detach() for name, parameter in parameters.items()}
        self.step_count = torch.zeros((), device=next(iter(self._parameters.values())).device)
        self.exp_avg = {name: self._first_moment(parameter) for name, parameter in self._parameters.items()}
        self.exp_avg_sq = {name: self._second_moment(parameter) for name, parameter in self._parameters.items()}

    def _first_moment(self, parameter: Tensor) -> Tensor:
        """The first moment of a parameter before the first step."""
        return torch.zeros_like(parameter)

    def _second_moment(self, parameter: Tensor) -> Tensor:
        """The second moment of a parameter before the first step."""
        return torch.zeros_like(parameter)

    def step(self, grads: Mapping[str, Gradient], lr: float | Tensor, *, skip: Float[Tensor, ""]) -> None:
        """One step down `grads`, by name. `skip` is 1 to change nothing, else 0; neither it nor `lr` is waited for."""
        if skip.is_cpu and skip:
            return
        self.step_count += 1 - skip
        for name in self._parameters:
            self._update(name, grads[name], lr, skip)

    def _update(self, name: str, grad: Gradient, lr: float | Tensor, skip: Float[Tensor, ""]) -> None:
        """One step of one parameter."""
        parameter, rates = self._parameters[name], self.row_rates.get(name)
        step = partial(self._step, lr=lr * self.rates.get(name, 1.0), skip=skip)
        for some in slices(parameter):
            part = parameter[some]
            before = part.clone() if rates is not None else part
            step(part, grad[some], self.exp_avg[name][some], self.exp_avg_sq[name][some])
            if rates is not None:
                torch.lerp(before, part, rates[some].view(-1, *(1 for _ in part.shape[1:])), out=part)
            settle_(part, unit_rows=name in self._unit_rows, copy=self._copy(name, some))

    def _copy(self, name: str, some: slice) -> Tensor | None:
        """These rows of a parameter's copy, if it has one."""
        return self.copies[name][some] if name in self.copies else None

    def _step(
        self, parameter: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, lr: float | Tensor, skip: Tensor
    ) -> None:
        torch._fused_adam_(
            [parameter],
            [grad],
            [exp_avg],
            [exp_avg_sq],
            [],
            [self.step_count],
            lr=lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """What survives a restart: the moments of each parameter, and the number of steps."""
        state = {"step": self.step_count}
        for name in self._parameters:
            state |= {f"{name}.exp_avg": self.exp_avg[name], f"{name}.exp_avg_sq": self.exp_avg_sq[name]}
        return state


def slices(parameter: Tensor) -> Iterator[slice]:
    """A parameter's rows in slices of about the wanted size."""
    wanted = _ROWS_BYTES.get(parameter.device.type, _ROWS_BYTES["cuda"])
    rows = max(1, wanted * len(parameter) // max(1, parameter.nbytes))
    for first in range(0, len(parameter), rows):
        yield slice(first, first + rows)
