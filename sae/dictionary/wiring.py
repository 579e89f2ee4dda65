"""What a dictionary reads and writes: hookpoints, one or several.

An autoencoder has one. A transcoder reads a module's input and writes its output; one called A->B reads A and writes B.
A crosscoder reads several and writes the same ones.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

INPUT = ".input"
"""Ending of a hookpoint's name that means a module's input."""
ARROW = "->"
"""Separator of the two hookpoints in the name of a transcoder A->B."""
CROSSCODER = "crosscoder"
"""The name of the dictionary of all chosen hookpoints."""


class Pair(NamedTuple):
    """Activations of one dictionary."""

    x: Float[Tensor, "*tokens d_in"]
    """Activations that are read."""
    y: Float[Tensor, "*tokens d_out"] | None
    """Activations to write; None where they are x itself."""


class Wiring(NamedTuple):
    """The hookpoints of one dictionary."""

    reads: tuple[str, ...]
    """Hookpoints whose activations, side by side, are encoded."""
    writes: tuple[str, ...]
    """Hookpoints whose activations, side by side, are reconstructed."""

    @classmethod
    def of(cls, hookpoint: str, *, transcode: bool) -> "Wiring":
        """The wiring at a hookpoint, or A->B. Raises ValueError for a transcoder of a module's input, or of A to A."""
        if ARROW in hookpoint:
            return cls._between(hookpoint, transcode=transcode)
        if not transcode:
            return cls((hookpoint,), (hookpoint,))
        if hookpoint.endswith(INPUT):
            raise ValueError(
                f"hookpoints must name modules to transcode, from their input to their output, got {hookpoint}; "
                f"give {hookpoint.removesuffix(INPUT)}"
            )
        return cls((hookpoint + INPUT,), (hookpoint,))

    @classmethod
    def _between(cls, name: str, *, transcode: bool) -> "Wiring":
        if not transcode:
            raise ValueError(f"hookpoints must name one place for an autoencoder, got {name}; add --transcode")
        reads, *writes = (end.strip() for end in name.split(ARROW))
        if len(writes) != 1 or not reads or not writes[0] or reads == writes[0]:
            raise ValueError(
                f"hookpoints must name two places to transcode between, as in 'layers.3{ARROW}layers.4', got {name!r}"
            )
        return cls((reads,), (writes[0],))

    @classmethod
    def across(cls, hookpoints: Iterable[str]) -> "Wiring":
        """The wiring of a crosscoder."""
        names = tuple(hookpoints)
        return cls(names, names)

    @property
    def ends(self) -> tuple[str, str]:
        """The hookpoint that a transcoder reads, and the one that it writes."""
        return self.reads[0], self.writes[0]

    @property
    def hookpoints(self) -> list[str]:
        """All hookpoints that it needs, each once."""
        return list(dict.fromkeys([*self.reads, *self.writes]))


def side_by_side(activations: Mapping[str, Tensor], hookpoints: tuple[str, ...]) -> Tensor:
    """The activations (…, d) at these hookpoints as one tensor (…, Σ d); a single hookpoint's are not copied."""
    if len(hookpoints) == 1:
        return activations[hookpoints[0]]
    return torch.cat([activations[hookpoint] for hookpoint in hookpoints], -1)


def pairs_of(wirings: Mapping[str, Wiring], activations: Mapping[str, Tensor]) -> dict[str, Pair]:
    """What each dictionary reads and is to write, by name. A suffix of a wider output is a view of it."""
    ends = dict.fromkeys(names for wiring in wirings.values() for names in wiring)
    known: dict[tuple[str, ...], Tensor] = {}
    for names in sorted(ends, key=len, reverse=True):
        wider = next((other for other in known if len(names) > 1 and other[-len(names) :] == names), None)
        width = sum(activations[name].shape[-1] for name in names)
        known[names] = side_by_side(activations, names) if wider is None else known[wider][..., -width:]
    return {
        name: Pair(known[wiring.reads], None if wiring.reads == wiring.writes else known[wiring.writes])
        for name, wiring in wirings.items()
    }


def to_harvest(chosen: Iterable[str], *, transcode: bool) -> list[str]:
    """All hookpoints that dictionaries of these names need, the written ones first; `transcode`: some transcode."""
    wirings = [Wiring.of(name, transcode=transcode) for name in chosen]
    reads = [hookpoint for wiring in wirings for hookpoint in wiring.reads]
    return list(dict.fromkeys([hookpoint for wiring in wirings for hookpoint in wiring.writes] + reads))


def written(cached: Iterable[str], *, transcode: bool) -> list[str]:
    """Cached hookpoints to train at; for transcoders, inputs of modules whose output is there too are left out."""
    names = list(cached)
    return [name for name in names if not (transcode and name.endswith(INPUT) and name.removesuffix(INPUT) in names)]
