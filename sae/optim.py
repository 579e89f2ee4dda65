"""The optimizer, its learning-rate laws and its schedule."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


class Adam:
    """Adam with the constants of Gao et al. 2024, arXiv:2406.04093, app. A: β₁ 0.9, ε 6.25e-10, and β₂ as given.

    PyTorch's own fused kernel, one pass over the memory, without `torch.optim`, whose import alone takes three seconds
    and 150 MB. The moments are made at once, all 0, so that they have a place in a state dict before the first step.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, beta2: float) -> None:
        """`parameters` by name, all on one device; they are updated in place."""
        self._beta2 = beta2
        self._parameters = {name: parameter.detach() for name, parameter in parameters.items()}
        self.step_count = torch.zeros((), device=next(iter(self._parameters.values())).device)
        self.exp_avg = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}

    def step(self, grads: Mapping[str, Tensor], lr: float, *, skip: Float[Tensor, ""]) -> None:
        """One step down `grads`, by name. `skip` is 1 to change nothing, else 0; it stays on the device."""
        self.step_count += 1 - skip
        names = list(self._parameters)
        torch._fused_adam_(
            [self._parameters[name] for name in names],
            [grads[name] for name in names],
            [self.exp_avg[name] for name in names],
            [self.exp_avg_sq[name] for name in names],
            [],
            [self.step_count] * len(names),
            lr=lr,
            beta1=0.9,
            beta2=self._beta2,
            weight_decay=0.0,
            eps=6.25e-10,
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


def peak_lr(num_latents: int, total_steps: int, recipe: str = "default") -> float:
    """The peak learning rate of a run.

    gao2024: 2e-4 / sqrt(num_latents / 2¹⁴), the scaling of the paper (sec. 3 and fig. 3). default: 320 / sqrt(steps)
    times that, at least 1 times and at most 20 times, so that the random walk that noisy gradients make is equally
    long, lr · sqrt(steps), in a run of 256 steps and in one of 100,000. Above 20 latents die (docs/recipe.md).
    """
    paper = 2e-4 / math.sqrt(num_latents / 2**14)
    if recipe == "gao2024":
        return paper
    return paper * min(20.0, max(1.0, 320 / math.sqrt(total_steps)))


def beta2(total_steps: int, recipe: str = "default") -> float:
    """Adam's β₂: 0.999 in the paper. default: its memory, 1 / (1 − β₂) steps, is a tenth of a run of less than 10,000
    steps, and never less than 10 steps.
    """
    return 0.999 if recipe == "gao2024" else min(0.999, max(0.9, 1 - 10 / total_steps))


def warmup_steps(total_steps: int, chosen: int | None) -> int:
    """`chosen`, or else 1000 steps, or a twentieth of a run that is shorter than 20,000 steps."""
    return chosen if chosen is not None else min(1000, total_steps // 20)


def schedule(step: int, total_steps: int, warmup: int) -> float:
    """Factor on the peak learning rate at `step` (from 0): linear up over `warmup` steps, then linear down to 0.

    Never 0 at a step that is taken: the first has 1 / (warmup + 1), and 0 is reached after the last.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup))
