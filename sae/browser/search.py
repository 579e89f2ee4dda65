"""Where a text stands among the tokens of an index, and which latents fire there."""

import re
from collections.abc import Sequence

import numpy as np

from .findings import Match

_MAX_MATCHES = 20_000


class JoinedText:
    """All tokens as one text."""

    def __init__(self, tokens: np.ndarray, vocabulary: Sequence[str]) -> None:
        lengths = np.array([len(text) for text in vocabulary])
        self._whole = "".join(map(vocabulary.__getitem__, tokens.tolist()))
        self._ends = np.cumsum(lengths[tokens])

    def positions_of(self, text: str) -> np.ndarray:
        """Positions of the tokens where a text stands, at the first few thousand places."""
        found: list[np.ndarray] = []
        for match in re.finditer(re.escape(text), self._whole, re.IGNORECASE):
            first, last = np.searchsorted(self._ends, [match.start(), match.end() - 1], "right")
            found.append(np.arange(first, last + 1))
            if len(found) >= _MAX_MATCHES:
                break
        return np.concatenate(found) if found else np.empty(0, np.int64)


def best_matches(latents: np.ndarray, values: np.ndarray, largest: np.ndarray, tokens: int, number: int) -> list[Match]:
    """The latents with the highest score, best first.

    Events on the `tokens` of the text are of `latents`, with activations `values`. `largest` is each latent's maximum.
    """
    hits = np.bincount(latents, minlength=len(largest))
    total = np.bincount(latents, values, minlength=len(largest))
    scores = total / np.maximum(largest, 1e-30) / max(1, tokens)
    best = np.argsort(-scores, kind="stable")[:number]
    return [Match(int(at), float(scores[at]), int(hits[at])) for at in best if hits[at]]
