"""The error of a crosscoder at each of its hookpoints."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary.gradients import Reconstruction
from sae.dictionary.losses import VarianceSums, fvu


class ErrorsByHookpoint:
    """Sums over the ordinary tokens; those of a step count when it is taken."""

    def __init__(self, parts: Mapping[str, slice], device: torch.device) -> None:
        """`parts` are the dimensions of each hookpoint; without any there is nothing to sum."""
        self._parts = dict(parts)
        self._variances = [VarianceSums.zeros(part.stop - part.start, device) for part in parts.values()]
        self._errors = torch.zeros(len(parts), dtype=torch.float64, device=device)
        self._step_variances, self._step_errors = [one.clone() for one in self._variances], self._errors.clone()

    def add(self, recon: Reconstruction, shift: Float[Tensor, "d"]) -> None:
        """Add these tokens to the step's sums; `shift` is b_dec minus what does not change over the steps."""
        for index, part in enumerate(self._parts.values()):
            found = VarianceSums.of(recon.centred[:, part], recon.ordinary)
            self._step_variances[index].add_(found.shifted_by(shift[part]))
            errors = torch.linalg.vector_norm(recon.residual[:, part], dim=1).square()
            self._step_errors[index] += errors.sum() if recon.ordinary is None else recon.ordinary.dot(errors)

    def step_sums(self) -> list[Tensor]:
        """The step's sums: others may add theirs in place."""
        return [*(tensor for one in self._step_variances for tensor in one), self._step_errors] if self._parts else []

    def count_step(self) -> None:
        """Let the step's sums count."""
        for mine, step in zip(self._variances, self._step_variances, strict=True):
            mine.add_(step)
            step.zero_()
        self._errors += self._step_errors
        self._step_errors.zero_()

    def read(self) -> dict[str, float]:
        """FVU by hookpoint since the last call, which starts anew. Waits for the device."""
        if not self._parts:
            return {}
        found = [fvu(error, one.total_variance()) for error, one in zip(self._errors, self._variances, strict=True)]
        for one in self._variances:
            one.zero_()
        values = torch.stack(found).tolist()
        self._errors.zero_()
        return dict(zip(self._parts, values, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """The sums that survive a restart."""
        state = {"errors": self._errors} if self._parts else {}
        for index, one in enumerate(self._variances):
            state |= {f"{index}.{name}": tensor for name, tensor in one._asdict().items()}
        return state
