"""Sums over sequences, their ratios, and the confidence intervals of the ratios."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Sums = TypeVar("Sums", bound=tuple[Any, ...])
"""A NamedTuple of tensors, or of such NamedTuples, whose sum over two sets of tokens is the sum of both."""

Z = 1.959964
"""Half the width of the middle 95 % of a normal distribution, in standard deviations."""


def merge(one: Sums, other: Sums) -> Sums:
    """The sums over both sets of tokens."""
    parts = zip(one, other, strict=True)
    return type(one)(*(merge(a, b) if isinstance(a, tuple) else a + b for a, b in parts))


def tensors_of(sums: tuple[Any, ...]) -> Iterator[Tensor]:
    """Every tensor of sums, in a fixed order: adding each over the ranks merges the ranks."""
    for part in sums:
        yield from tensors_of(part) if isinstance(part, tuple) else (part,)


def on_cpu(sums: Sums) -> Sums:
    """The same sums on the CPU."""
    return type(sums)(*(on_cpu(part) if isinstance(part, tuple) else part.cpu() for part in sums))


class Estimate(NamedTuple):
    """A number measured on some sequences, and its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Moments(NamedTuple):
    """First and second moments, over sequences, of a vector that is summed over the tokens of each sequence."""

    sequences: Float[Tensor, ""]
    first: Float[Tensor, "m"]
    """Σ u."""
    second: Float[Tensor, "m m"]
    """Σ u uᵀ."""

    @classmethod
    def of(cls, rows: Float[Tensor, "sequences m"]) -> "Moments":
        """The moments of one vector for each sequence."""
        rows = rows.double()
        return cls(torch.tensor(float(len(rows)), dtype=torch.float64, device=rows.device), rows.sum(0), rows.T @ rows)

    @classmethod
    def zeros(cls, m: int) -> "Moments":
        """The moments of no sequence."""
        return cls.of(torch.zeros(0, m, dtype=torch.float64))

    def ratio(self, above: Float[Tensor, "m"], below: Float[Tensor, "m"]) -> Estimate:
        """(Σ above·u) / (Σ below·u), with its 95 % confidence interval by sequence. Waits for the device.

        Tokens of one sequence are not independent, sequences are. R is the ratio, and e = above·u − R below·u of each
        sequence. The standard error is sqrt(n / (n − 1) Σ e²) / |Σ below·u|. It is the linearised variance of a ratio
        of totals under cluster sampling (Cochran 1977, Sampling Techniques, sec. 6.4 and 9A). With fewer than two
        sequences the interval is NaN. A share of a difference that is within noise, whose own 95 % interval holds 0, is
        NaN too.
        """
        used = (above != 0) | (below != 0)  # 0 times a NaN of what is not asked for is NaN
        n, first, second = self.sequences.item(), self.first.cpu()[used], self.second.cpu()[used][:, used]
        above, below = above.to(first)[used], below.to(first)[used]
        total = (below @ first).item()
        value = (above @ first).item() / total if total else math.nan
        if n < 2 or not math.isfinite(value):
            return Estimate(value, math.nan, math.nan)
        if (below < 0).any():
            spread_below = max(0.0, (below @ second @ below).item() - total**2 / n)
            if abs(total) <= Z * math.sqrt(n / (n - 1) * spread_below):
                return Estimate(math.nan, math.nan, math.nan)
        weights = above - value * below
        spread = max(0.0, (weights @ second @ weights).item())
        half = Z * math.sqrt(n / (n - 1) * spread) / abs(total)
        return Estimate(value, value - half, value + half)


def weights(names: tuple[str, ...], combination: Mapping[str, float]) -> Float[Tensor, "m"]:
    """The vector that a linear combination of named components stands for."""
    return torch.tensor([combination.get(name, 0.0) for name in names], dtype=torch.float64)


def mean_and_half(values: Sequence[float] | np.ndarray, error: float = math.nan) -> tuple[float, float]:
    """The mean of independent values, and half of its 95 % interval; NaN where there is none.

    `error` is the standard error of a single value.
    """
    found = np.asarray(values)
    error = found.std(ddof=1) / math.sqrt(len(found)) if len(found) > 1 else error
    return float(found.mean()) if len(found) else math.nan, Z * float(error)


def f1_of(
    both: Float[Tensor, "classes"] | Int[Tensor, "classes"],
    found: Float[Tensor, "classes"] | Int[Tensor, "classes"],
    there: Float[Tensor, "classes"] | Int[Tensor, "classes"],
) -> Float[Tensor, "classes"]:
    """F1 = 2 tp / (2 tp + fp + fn) by numbers of cases: in `both`, that are `found`, that are `there`.

    0 where nothing is right.
    """
    return 2 * both / (found + there).clamp_min(1)
