"""A note on unused latents: on few tokens, those that fire rarely count too."""

import math
from collections.abc import Iterable

ENOUGH = 40
"""Firings of a latent, in the mean, with which next to no latent that lives is unused: 0.5 % of them. With 20 it was
4 %, with 11 13 % (32,768 latents, of which 0.01 % are unused on more tokens; docs/benchmarks/quality.md).
"""
SHOWN = 0.01
"""Share of unused latents from which on it is worth a line."""


def note(tokens: int, rows: Iterable[tuple[float, float]]) -> str | None:
    """One line, if latents of some row may be rare and not dead; else None.

    A row is the share of unused latents on `tokens`, and how often a latent fires on them in the mean.
    """
    few = [firings for unused, firings in rows if unused >= SHOWN and 0 < firings < ENOUGH]
    if not few:
        return None
    needed = math.ceil(tokens * ENOUGH / min(few) / 1000) * 1000
    return (
        f"unused: on {tokens:,} tokens a latent fires {min(few):.0f} times in the mean, so rare ones count as unused; "
        f"sae eval RUN MODEL DATASET --max_tokens {needed}, on more text, tells them from dead ones"
    )
