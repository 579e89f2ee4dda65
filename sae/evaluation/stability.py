"""How many latents several dictionaries share, such as those of two seeds. Needs their weights and nothing else."""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch

from sae.dictionary.autoencoder import Sae
from sae.evaluation.matching import LARGEST_OPTIMAL, match

BINS = 20
"""Bins of the histogram of |cosine|, each 0.05 wide."""
SHARED = (0.7, 0.9)
"""|cosine| of its partner from which a latent is shared. Paulo and Belrose 2025, arXiv:2501.16615: 0.7."""


class Stability(NamedTuple):
    """Two dictionaries at one hookpoint, whose latents are paired one to one (`matching.match`)."""

    checkpoint: str
    other: str
    hookpoint: str
    latents: tuple[int, int]
    """Numbers of latents of the two; the pairs are as many as the smaller has."""
    pw_mcc: float
    """Mean |cosine| of the pairs (`Matching.mean`)."""
    shared: dict[str, float]
    """Share of the pairs whose |cosine| is at least `SHARED`."""
    histogram: list[int]
    """Pairs by |cosine|, in `BINS` equal bins from 0 to 1."""
    matching: str
    """Kind of the matching: optimal, or greedy."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return self._asdict()


def stabilities(
    load: Mapping[str, Mapping[str, Callable[[], Sae]]],
    first: set[str],
    tell: Callable[[str], None] = lambda text: None,
) -> list[Stability]:
    """Each dictionary of the labels `first` beside each of the other labels, hookpoint by hookpoint.

    `load` gives them by label and hookpoint; two are in memory at a time. `tell` gets sentences about greedy pairings,
    and about what has no partner. Raises ValueError if no two have a hookpoint in common, or if they do not write the
    same there.
    """
    pairs = [(one, other) for one, other in combinations(load, 2) if one in first or other in first]
    common = [(one, other, at) for one, other in pairs for at in load[one] if at in load[other]]
    if not common:
        held = "; ".join(f"{label} has {', '.join(sorted(load[label])[:6])}" for label in load)
        raise ValueError(
            f"stability must compare dictionaries at a hookpoint that both have, got none: {held}; name another "
            "checkpoint than this one, or other --hookpoints"
        )
    compared = {(label, at) for one, other, at in common for label in (one, other)}
    if alone := [f"{at} of {label}" for label in load for at in load[label] if (label, at) not in compared]:
        tell(f"without a partner at the same hookpoint, and so left out: {', '.join(alone)}")
    found = [_stability(one, other, at, load[one][at](), load[other][at]()) for one, other, at in common]
    if any(each.matching == "greedy" for each in found):
        tell(
            f"dictionaries of more than {LARGEST_OPTIMAL:,} latents are paired greedily: PW-MCC may be a little too low"
        )
    return found


@torch.no_grad()
def _stability(one: str, other: str, hookpoint: str, a: Sae, b: Sae) -> Stability:
    ends = [", ".join(sae.spec.writes) for sae in (a, b) if sae.cfg.crosscode or sae.cfg.cross_layer]
    if len(ends) == 2 and ends[0] != ends[1]:
        raise ValueError(
            f"stability must compare dictionaries that write the same, got {ends[0]} in {one} and {ends[1]} in {other} "
            f"at {hookpoint}; give checkpoints of the same hookpoints, or others with --hookpoints"
        )
    if a.d_out != b.d_out:
        raise ValueError(
            f"stability must compare dictionaries of one width, got {a.d_out} in {one} and {b.d_out} in {other} at "
            f"{hookpoint}; are they of the same model and kind?"
        )
    pairs = match(a.W_dec, b.W_dec)
    cosines = pairs.cosines
    histogram, _ = np.histogram(cosines, bins=BINS, range=(0, 1))
    return Stability(
        one, other, hookpoint, (a.num_latents, b.num_latents), pairs.mean,
        {f"{least:g}": float((cosines >= least).mean()) for least in SHARED},
        histogram.tolist(), "optimal" if pairs.optimal else "greedy",
    )  # fmt: skip
