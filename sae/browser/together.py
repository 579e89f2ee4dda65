"""Which latents fire on the same tokens: counted on as many tokens as an answer within a moment allows."""

from functools import cached_property
from typing import NamedTuple

import numpy as np

TOKENS, ENOUGH = 2**20, 100
"""Tokens, from the first on, on which latents are counted together; all, if a latent fires on fewer than ENOUGH of
these."""
_EVENTS_AT_ONCE = 2**18
"""Events at a time: so few that temporary arrays fit into a cache."""


class Coactive(NamedTuple):
    """A latent that fires on the same tokens."""

    latent: int
    correlation: float
    """Pearson's, of firing or not, over the tokens that count and are not massive: of the first million, mostly."""
    both: int
    """Tokens on which both fire."""


class Sample:
    """Events on the first tokens of an index, of all latents of a place."""

    def __init__(self, positions: np.ndarray, starts: np.ndarray, ordinary: np.ndarray) -> None:
        """`ordinary` says of each of the first tokens whether it counts and is not massive."""
        self._positions, self._starts, self.ordinary = positions, starts, ordinary
        self.stops = starts[:-1] + first_from(positions, starts, len(ordinary))

    @cached_property
    def counts(self) -> np.ndarray:
        """On how many ordinary tokens of the sample each latent fires."""
        return self.on(self.ordinary)

    def on(self, marked: np.ndarray) -> np.ndarray:
        """On how many of the `marked` tokens of the sample each latent fires."""
        counts = np.zeros(len(self.stops), np.int64)
        ends, low = np.cumsum(self.stops - self._starts[:-1]), 0
        while low < len(ends):
            before = ends[low - 1] if low else 0
            high = max(low + 1, int(np.searchsorted(ends, before + _EVENTS_AT_ONCE, "right")))
            hits = np.flatnonzero(marked[self._between(low, high)])
            of = np.searchsorted(ends[low:high] - before, hits, "right")
            counts[low:high] = np.bincount(of, minlength=high - low)
            low = high
        return counts

    def _between(self, low: int, high: int) -> np.ndarray:
        """Tokens of the events of latents `low` to `high`."""
        if np.array_equal(self.stops[low:high], self._starts[low + 1 : high + 1]):
            return self._positions[self._starts[low] : self._starts[high]]
        slices = zip(self._starts[low:high].tolist(), self.stops[low:high].tolist(), strict=True)
        return np.concatenate([self._positions[start:stop] for start, stop in slices])


def first_from(positions: np.ndarray, starts: np.ndarray, token: int) -> np.ndarray:
    """How many events of each latent stand before a token: a binary search in all latents' events at once."""
    low, high = np.zeros(len(starts) - 1, np.int64), np.diff(starts)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        is_before = np.zeros(len(low), np.bool_)
        is_before[open_] = positions[starts[:-1][open_] + middle[open_]] < token
        low, high = np.where(open_ & is_before, middle + 1, low), np.where(open_ & ~is_before, middle, high)
    return low


def coactive(sample: Sample, own: np.ndarray, latent: int, number: int) -> list[Coactive]:
    """The latents whose firing correlates most with that of one, which fires on the tokens `own`.

    φ = (N n_ij − n_i n_j) / √(n_i n_j (N − n_i)(N − n_j)), Pearson's correlation of the two indicators.
    """
    marked = np.zeros(len(sample.ordinary), np.bool_)
    marked[own[own < len(marked)]] = True
    marked &= sample.ordinary
    return correlated(sample.on(marked), sample.counts, latent, int(sample.ordinary.sum()), number)


def correlated(both: np.ndarray, counts: np.ndarray, latent: int, tokens: int, number: int) -> list[Coactive]:
    """From on how many of the tokens each latent fires, alone and together with one, the largest correlations."""
    both, counts = both.astype(np.float64), counts.astype(np.float64)
    own = counts[latent]
    spread = np.sqrt(own * (tokens - own) * counts * (tokens - counts))
    phi = np.where(spread > 0, (tokens * both - own * counts) / np.maximum(spread, 1e-30), 0)
    phi[latent] = -1
    best = np.argsort(-phi, kind="stable")[:number]
    return [Coactive(int(at), float(phi[at]), int(both[at])) for at in best if both[at] > 0 and phi[at] > 0]
