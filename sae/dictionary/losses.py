"""Losses and reported quantities, as sums over tokens that merge exactly over chunks, micro-batches and ranks."""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

MASSIVE = 200.0
"""Variances per token of the ordinary tokens: the squared distance from their mean above which a token is massive."""
_CHUNK_ELEMENTS = 2**19
"""Elements of the tokens that are centred together on a CPU, so that they stay in its cache."""
_CONSTANT = 1e-12
"""Variance per energy that float32 sums cannot tell from 0: tokens that differ by less than a millionth."""
_SINGLE_PASS = 2**14
"""Number of tokens up to which one pass looks at all together."""
_ROUNDS = 2
"""Rounds in which the rough set of ordinary tokens is made better by its own mean and variance."""
_MEDIAN_STEPS = 5
"""Steps of Weiszfeld's iteration: enough for one massive token in sixteen, 200 times as far away as the others."""


class VarianceSums(NamedTuple):
    """Sums over tokens of y = x − shift, for any fixed `shift`, which cancels."""

    tokens: Float[Tensor, ""]
    """Number of tokens."""
    first: Float[Tensor, "d"]
    """Σ y, per dimension."""
    second: Float[Tensor, ""]
    """Σ ‖y‖²."""

    @classmethod
    def of(cls, x: Float[Tensor, "tokens d"], counts: Float[Tensor, "tokens"] | None = None) -> "VarianceSums":
        """The sums of these tokens for shift 0. They are taken about the tokens' mean, however far that is, then moved.

        `counts` is 1 for a token that counts and 0 for the others; a NaN or infinity shows in either. None: all count.
        """
        chunk = max(1, _CHUNK_ELEMENTS // max(1, x.shape[1])) if x.is_cpu else max(1, len(x))
        if counts is None:
            return reduce(cls.merge, (cls._about_mean(part) for part in x.split(chunk)))
        parts = zip(x.split(chunk), counts.split(chunk), strict=True)
        return reduce(cls.merge, (cls._about_mean_of_some(part, some) for part, some in parts))

    @classmethod
    def _about_mean(cls, x: Float[Tensor, "tokens d"]) -> "VarianceSums":
        x = at_least_float32(x)
        mean = x.sum(0) / max(1, len(x))
        return cls.near_mean(x - mean).shifted_by(mean)

    @classmethod
    def _about_mean_of_some(cls, x: Float[Tensor, "tokens d"], counts: Float[Tensor, "tokens"]) -> "VarianceSums":
        x = at_least_float32(x)
        counts = counts.to(x.dtype)
        number = counts.sum()
        mean = counts @ x / number.clamp_min(1)
        y = x - mean
        squares = torch.linalg.vector_norm(y, dim=1).square()
        return cls(number.double(), (counts @ y).double(), counts.dot(squares).double()).shifted_by(mean)

    @classmethod
    def near_mean(cls, shifted: Float[Tensor, "tokens d"]) -> "VarianceSums":
        """The sums of these tokens y, whose mean is near 0. They are taken in float32 at least, kept and merged in
        float64.
        """
        y = at_least_float32(shifted)
        count = torch.full((), float(len(y)), dtype=torch.float64, device=y.device)  # no wait for a GPU
        return cls(count, y.sum(0).double(), y.flatten().dot(y.flatten()).double())

    @classmethod
    def zeros(cls, d: int, device: torch.device | str) -> "VarianceSums":
        """The sums of no tokens."""
        return cls.near_mean(torch.zeros(0, d, device=device))

    def merge(self, other: "VarianceSums") -> "VarianceSums":
        """The sums of both sets of tokens."""
        return VarianceSums(self.tokens + other.tokens, self.first + other.first, self.second + other.second)

    def add_(self, other: "VarianceSums") -> None:
        """Become the sums of both sets of tokens."""
        for mine, theirs in zip(self, other, strict=True):
            mine.add_(theirs)

    def zero_(self) -> None:
        """Become the sums of no tokens."""
        for mine in self:
            mine.zero_()

    def clone(self) -> "VarianceSums":
        """A copy in memory of its own."""
        return VarianceSums(*(mine.clone() for mine in self))

    def shifted_by(self, delta: Float[Tensor, "d"]) -> "VarianceSums":
        """The sums of y + delta, for the same tokens."""
        delta = delta.double()
        second = self.second + 2 * (delta @ self.first) + self.tokens * (delta @ delta)
        return VarianceSums(self.tokens, self.first + self.tokens * delta, second)

    def mean(self) -> Float[Tensor, "d"]:
        """The mean of the tokens, minus the shift; 0 if there are none."""
        return self.first / self.tokens.clamp_min(1)

    def total_variance(self) -> Float[Tensor, ""]:
        """Σ ‖x − mean(x)‖² over the tokens: 0 for one token, and for tokens that are equal up to rounding."""
        variance = self.second - self.first.square().sum() / self.tokens.clamp_min(1)
        return variance.masked_fill(variance <= _CONSTANT * self.second.abs(), 0)


def at_least_float32(x: Tensor) -> Tensor:
    """x in a type whose sums of squares neither overflow nor lose what is summed: float64 stays, else float32."""
    return x if x.dtype == torch.float64 else x.float()


class Ordinary(NamedTuple):
    """Which tokens are ordinary: those no farther than `farthest` from `centre`. The others are massive."""

    centre: Float[Tensor, "*d"]
    farthest: Float[Tensor, ""]

    def counts(self, x: Float[Tensor, "*tokens d"]) -> Float[Tensor, "*tokens"]:
        """1 for an ordinary token, 0 for a massive one (or one that is not finite)."""
        centre = self.centre.to(x.device, torch.float32)
        return (torch.linalg.vector_norm(x.float() - centre, dim=-1) <= self.farthest.to(centre)).float()


EVERYTHING = Ordinary(torch.zeros(()), torch.full((), torch.inf))
"""The rule by which all finite tokens are ordinary."""


class Spread(NamedTuple):
    """Sums over tokens, with shift 0: over all, and over the ordinary ones."""

    everything: VarianceSums
    ordinary: VarianceSums

    @classmethod
    def zeros(cls, d: int, device: torch.device | str) -> "Spread":
        """The sums of no tokens."""
        return cls(VarianceSums.zeros(d, device), VarianceSums.zeros(d, device))

    @property
    def rule(self) -> Ordinary:
        """Which tokens are ordinary: ‖x − mean‖² of at most `MASSIVE` variances per token; all if there is none."""
        variance = self.ordinary.total_variance() / self.ordinary.tokens.clamp_min(1)
        return Ordinary(self.ordinary.mean(), torch.where(variance > 0, (MASSIVE * variance).sqrt(), torch.inf))


def spread(
    x: Float[Tensor, "tokens d"],
    few: Float[Tensor, "some d"],
    add_up: Callable[[list[Tensor]], None] = lambda sums: None,
) -> Spread:
    """Sums over the tokens of x, all and the ordinary ones. The tokens `few` decide which are ordinary.

    Massive tokens (Sun et al. 2024, arXiv:2402.17762), attention sinks mostly, are so long that one outweighs hundreds
    of others. Two robust numbers find the rough set of ordinary tokens: the geometric median of `few` (Weiszfeld 1937),
    and the geometric mean of the squared distances from it. No massive token moves them far. Mean and variance of the
    rough set then decide. `add_up` adds, in place, the sums over other processes' tokens. Raises ValueError for no
    tokens.
    """
    rule = _rough(few, add_up)
    for _ in range(_ROUNDS):
        rule = _sums_of(few, rule, add_up).rule
    found = _sums_of(x, rule, add_up)
    return found if found.ordinary.tokens < found.everything.tokens else Spread(found.everything, found.everything)


def _rough(few: Float[Tensor, "some d"], add_up: Callable[[list[Tensor]], None]) -> Ordinary:
    """Tokens within `MASSIVE` geometric means of the squared distance from the geometric median."""
    few = few.float()
    tiny = torch.finfo(few.dtype).tiny
    centre, count = few.sum(0), few.new_tensor(float(len(few)))
    add_up([centre, count])
    if not count:
        raise ValueError("the first batches must hold tokens to train on, got none; exclude fewer of them")
    centre /= count
    for _ in range(_MEDIAN_STEPS):
        shares = 1 / torch.linalg.vector_norm(few - centre, dim=1).clamp_min(tiny**0.5)
        total, of_them = shares @ few, shares.sum()
        add_up([total, of_them])
        centre = total / of_them
    logarithm = (few - centre).square().sum(1).clamp_min(tiny).log().sum()
    add_up([logarithm])
    return Ordinary(centre, (MASSIVE * (logarithm / count).exp()).sqrt())


def _sums_of(x: Float[Tensor, "tokens d"], rule: Ordinary, add_up: Callable[[list[Tensor]], None]) -> Spread:
    """The sums over the tokens of x, in one pass."""
    near, far = (VarianceSums.zeros(x.shape[1], x.device) for _ in range(2))
    centre = rule.centre.float()
    for part in x.split(_SINGLE_PASS):
        is_near = rule.counts(part) > 0
        if is_near.all():
            near = near.merge(VarianceSums.near_mean(part.float() - centre))
        else:
            near = near.merge(VarianceSums.near_mean(part[is_near].float() - centre))
            far = far.merge(VarianceSums.near_mean(part[~is_near].float() - centre))
    add_up([*near, *far])
    return Spread(near.merge(far).shifted_by(centre), near.shifted_by(centre))


def fvu(squared_error: Float[Tensor, ""], total_variance: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Fraction of variance *un*explained: Σ‖x − x̂‖² / Σ‖x − mean(x)‖².

    Both sums run over the same tokens and all dimensions; the mean is per dimension, over these tokens. This is the
    project's only definition of FVU. 0 is perfect, 1 is what the mean alone reaches; constant activations give NaN
    or infinity.
    """
    return squared_error / total_variance


def auxk_scale(num_dead: int, k_aux: int) -> float:
    """Factor that phases AuxK in while fewer latents are dead than it would pick: min(num_dead / k_aux, 1)."""
    return min(num_dead / k_aux, 1.0)


def divergence(
    log_p: Float[Tensor, "*positions vocab"], log_q: Float[Tensor, "*positions vocab"]
) -> Float[Tensor, "*positions"]:
    """KL(p ‖ q), nats. Tokens with p = 0 add nothing, whatever q is: a vocabulary may be padded with them."""
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(-1)
