"""Statistics of each latent, computed from its events: for some latents at a time, without a loop over them.

Massive tokens, such as attention sinks, would fill every list of contexts. Their events are kept and counted.
Everything else here covers the ordinary tokens alone.

A context is a passage of `CONTEXT` tokens, aligned in its sequence. It counts once for a latent, with the largest
activation in it. Ties go to what comes first.
"""

from typing import NamedTuple

import numpy as np

from .layout import BINS, CONTEXT, FIFTHS, FIRES_ON, NONE, OF_EACH_FIFTH, TOP

SAME = 8
"""Number of last tokens, up to the strongest, in which repeated passages agree."""
_CANDIDATES = 3 * TOP
"""The strongest contexts that are looked at for repetitions."""
_SCORE_BITS = 31
"""Bits of a positive float32, whose order is that of whole numbers."""
AT_LEAST = 3
"""Occurrences that a token needs to be among those on which a latent fires most strongly in the mean."""


class Corpus(NamedTuple):
    """The tokens of an index, as one place sees them."""

    tokens: np.ndarray
    """Ids, sequence after sequence."""
    ctx_len: int
    occurrences: np.ndarray
    """How often each token stands where it counts and is not massive."""


class Events(NamedTuple):
    """Events of some latents, sorted by latent, then by position."""

    counts: np.ndarray
    """Events of each latent."""
    positions: np.ndarray
    values: np.ndarray
    """Activations as they are stored: positive float16, whose bits order them too."""

    @property
    def latents(self) -> np.ndarray:
        """The latent of each event, from 0."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def only(self, chosen: np.ndarray) -> "Events":
        """The events for which `chosen` is true."""
        counts = np.bincount(self.latents[chosen], minlength=len(self.counts))
        return Events(counts, self.positions[chosen], self.values[chosen])


def describe(events: Events, massive: np.ndarray, corpus: Corpus, scale: float) -> dict[str, np.ndarray]:
    """The columns of these latents that follow from their events; `massive` says which events are on such tokens."""
    ordinary = events.only(~massive)
    columns = {"count": ordinary.counts, "massive_count": events.counts - ordinary.counts}
    columns |= _amounts(ordinary, corpus.ctx_len, scale)
    columns |= _contexts(ordinary, corpus, scale)
    return columns | _fires_on(ordinary, corpus, scale)


def _amounts(events: Events, ctx_len: int, scale: float) -> dict[str, np.ndarray]:
    values = events.values.astype(np.float32)
    offsets = (events.positions % ctx_len).astype(np.int32)
    largest = _reduced(np.maximum, values, events.counts)
    with np.errstate(invalid="ignore"):
        mean = _reduced(np.add, values.astype(np.float64), events.counts) / np.maximum(events.counts, 1)
    return {
        "max": largest * scale,
        "mean": mean * scale,
        "first": _reduced(np.minimum, offsets, events.counts, empty=-1),
        "last": _reduced(np.maximum, offsets, events.counts, empty=-1),
        "histogram": histogram(values, events.latents, largest),
    }


def histogram(values: np.ndarray, latents: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """(latents, BINS): how many activations lie in each equal part of the range from 0 to the largest, inclusive."""
    bins = np.minimum(BINS * values / largest[latents], BINS - 1).astype(np.int64)
    return np.bincount(latents * BINS + bins, minlength=len(largest) * BINS).reshape(-1, BINS)


def _contexts(events: Events, corpus: Corpus, scale: float) -> dict[str, np.ndarray]:
    counts, order = strongest_first(events, corpus.ctx_len)
    starts = np.cumsum(counts) - counts
    positions, values = events.positions[order], events.values[order].astype(np.float32)
    return {
        "contexts": counts,
        "edges": _picked(values, starts, _edges(counts), 0) * scale,
        "top": _without_repeats(_picked(positions, starts, _first(counts, _CANDIDATES), NONE), corpus, TOP),
        "fifths": _picked(positions, starts, _of_fifths(counts), NONE),
    }


def strongest_first(events: Events, ctx_len: int) -> tuple[np.ndarray, np.ndarray]:
    """How many contexts each latent has, and the strongest event of each: by latent, then from strong to weak."""
    if not events.positions.size:
        return events.counts * 0, np.empty(0, np.int64)
    latents, bits = events.latents, events.values.view(np.uint16)
    passages = events.positions // ctx_len * (-(-ctx_len // CONTEXT)) + events.positions % ctx_len // CONTEXT
    begins = np.flatnonzero(np.append(True, (np.diff(latents) != 0) | (np.diff(passages) != 0)))
    # One sort of whole numbers: latent, then activation from large to small, then which event.
    keys = _packed(latents, ~bits, np.arange(len(bits)))
    strongest = np.minimum.reduceat(keys, begins)
    strongest.sort()
    return np.bincount(latents[begins], minlength=len(events.counts)), (strongest & (2**32 - 1)).astype(np.int64)


def _packed(high: np.ndarray, middle: np.ndarray, low: np.ndarray) -> np.ndarray:
    """16, 16 and 32 bits as one number. A part has at most 2**16 latents."""
    return (high.astype(np.uint64) << 48) | (middle.astype(np.uint64) << 32) | low.astype(np.uint64)


def _first(counts: np.ndarray, number: int) -> np.ndarray:
    """(latents, number): ranks 0, 1, … as far as there are; else -1."""
    ranks = np.arange(number)
    return np.where(ranks < counts[:, None], ranks, -1)


def _of_fifths(counts: np.ndarray) -> np.ndarray:
    """(latents, FIFTHS · OF_EACH_FIFTH): ranks spread evenly over each fifth of the contexts, the strongest first."""
    edges = counts[:, None] * np.arange(FIFTHS + 1) // FIFTHS
    sizes = np.diff(edges, axis=1)[:, :, None]
    steps = np.arange(OF_EACH_FIFTH)
    few = np.where(steps < sizes, steps, -1)
    ranks = np.where(sizes > OF_EACH_FIFTH, steps * sizes // OF_EACH_FIFTH, few)
    return np.where(ranks >= 0, ranks + edges[:, :-1, None], -1).reshape(len(counts), -1)


def _edges(counts: np.ndarray) -> np.ndarray:
    """(latents, FIFTHS + 1): the rank with which each fifth begins, and the last one."""
    ranks = counts[:, None] * np.arange(FIFTHS + 1) // FIFTHS
    return np.where(counts[:, None] > 0, np.minimum(ranks, counts[:, None] - 1), -1)


def _picked(values: np.ndarray, starts: np.ndarray, ranks: np.ndarray, missing: float) -> np.ndarray:
    """The values of these ranks for each latent; `missing` where a rank is -1."""
    if not values.size:
        return np.full(ranks.shape, missing, values.dtype)
    taken: np.ndarray = values[np.minimum(starts[:, None] + ranks, len(values) - 1)]
    picked: np.ndarray = np.where(ranks >= 0, taken, values.dtype.type(missing))
    return picked


def top_of(events: Events, corpus: Corpus, number: int) -> np.ndarray:
    """Positions of the strongest contexts of one latent, repetitions left out."""
    _, order = strongest_first(events, corpus.ctx_len)
    found: np.ndarray = _without_repeats(events.positions[order][None], corpus, number)[0]
    return found[found != NONE]


def _without_repeats(positions: np.ndarray, corpus: Corpus, number: int) -> np.ndarray:
    """(latents, number): the first of these contexts, without those that end as an earlier one does."""
    chosen = np.full((len(positions), number), NONE, np.uint32)
    there = positions != NONE
    if not there.any():
        return chosen
    ends = _hash_of_ends(np.where(there, positions, 0), corpus)
    order = np.argsort(ends, axis=1, kind="stable")
    ordered = np.take_along_axis(ends, order, 1)
    again = np.zeros(positions.shape, np.bool_)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    kept = there & ~again
    ranks = np.cumsum(kept, 1) - 1
    rows, columns = np.nonzero(kept & (ranks < number))
    chosen[rows, ranks[rows, columns]] = positions[rows, columns]
    return chosen


def _hash_of_ends(positions: np.ndarray, corpus: Corpus) -> np.ndarray:
    """A number for the last SAME tokens up to each position, within its sequence: equal tokens have equal numbers."""
    positions = positions.astype(np.int64)
    found = np.zeros(positions.shape, np.uint64)
    offsets = positions % corpus.ctx_len
    for back in range(SAME):
        inside = offsets >= back
        token = np.where(inside, corpus.tokens[np.where(inside, positions - back, 0)], NONE).astype(np.uint64)
        found = (found ^ token) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    return found


def _fires_on(events: Events, corpus: Corpus, scale: float) -> dict[str, np.ndarray]:
    """Tokens on which most of a latent's activations stand, and those with the largest mean over all occurrences."""
    tokens = corpus.tokens[events.positions].astype(np.uint64)
    # Sorted by latent and token; the activation's bits ride along, so that no permutation is needed.
    keys = (events.latents.astype(np.uint64) << 48) | (tokens << 16) | events.values.view(np.uint16)
    keys.sort()
    begins = np.flatnonzero(np.append(True, np.diff(keys >> 16) != 0)) if keys.size else np.empty(0, np.int64)
    latents, which = (keys[begins] >> 48).astype(np.int64), (keys[begins] >> 16 & (2**32 - 1)).astype(np.int64)
    values = (keys & 0xFFFF).astype(np.uint16).view(np.float16).astype(np.float64)
    times = np.diff(np.append(begins, len(keys)))
    total = np.add.reduceat(values, begins) if keys.size else np.empty(0)
    often = corpus.occurrences[which]
    share = times / np.maximum(events.counts[latents], 1)
    mean = np.where(often >= AT_LEAST, total / np.maximum(often, 1), 0) * scale
    by_share, by_mean = (_largest(latents, which, score, len(events.counts)) for score in (share, mean))
    return {"share_tokens": by_share[0], "shares": by_share[1], "mean_tokens": by_mean[0], "means": by_mean[1]}


def _largest(latents: np.ndarray, which: np.ndarray, scores: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The FIRES_ON tokens of the largest positive scores of each latent, and these scores. `latents` are sorted.

    Scores that agree in their first 27 bits or more are in the order of the tokens.
    """
    there = np.flatnonzero(scores > 0)
    latents, which, scores = latents[there], which[there], scores[there].astype(np.float32)
    # One sort of whole numbers: latent, then score from large to small, then which one.
    of_index, of_latent = len(there).bit_length(), number.bit_length()
    of_score = min(_SCORE_BITS, 64 - of_index - of_latent)
    down = (np.uint32(2**_SCORE_BITS - 1) - scores.view(np.uint32)) >> np.uint32(_SCORE_BITS - of_score)
    keys = (latents.astype(np.uint64) << (of_score + of_index)) | (down.astype(np.uint64) << of_index)
    keys |= np.arange(len(there), dtype=np.uint64)
    keys.sort()
    order = (keys & (2**of_index - 1)).astype(np.int64)
    counts = np.bincount(latents, minlength=number)
    ranks, starts = _first(counts, FIRES_ON), np.cumsum(counts) - counts
    return _picked(which[order].astype(np.uint32), starts, ranks, NONE), _picked(scores[order], starts, ranks, 0)


def _reduced(operation: np.ufunc, values: np.ndarray, counts: np.ndarray, empty: float = 0) -> np.ndarray:
    """The operation over each latent's values, which stand together; `empty` for a latent without any."""
    found = np.full(len(counts), empty, values.dtype)
    filled = np.flatnonzero(counts)
    if filled.size:
        found[filled] = operation.reduceat(values, (np.cumsum(counts) - counts)[filled])
    return found
