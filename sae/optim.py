"""The optimizer, its learning-rate law and its schedule."""

import math
from collections.abc import Iterable

import torch


def adam(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Adam:
    """Adam with the constants of Gao et al. 2024, arXiv:2406.04093, app. A; the caller sets `lr` at every step."""
    return torch.optim.Adam(parameters, lr=0.0, betas=(0.9, 0.999), eps=6.25e-10, fused=True)


def peak_lr(num_latents: int) -> float:
    """2e-4 / sqrt(num_latents / 2¹⁴), the scaling of Gao et al. 2024, arXiv:2406.04093, sec. 3 and fig. 3."""
    return 2e-4 / math.sqrt(num_latents / 2**14)


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
