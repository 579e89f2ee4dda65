"""What a dictionary reads and writes: hookpoints, one or several.

An autoencoder has one. A transcoder reads a module's input and writes its output. A crosscoder reads several and
writes the same ones.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

INPUT = ".input"
"""What the name of a hookpoint ends with that is a module's input."""
CROSSCODER = "crosscoder"
"""The name of the dictionary of all chosen hookpoints."""

Pair = tuple[Tensor, Tensor | None]
"""x (tokens, d_in), which is read, and y (tokens, d_out), which is to be written; None: x itself."""


class Wiring(NamedTuple):
    """The hookpoints of one dictionary."""

    reads: tuple[str, ...]
    """Their activations, side by side, are what it encodes."""
    writes: tuple[str, ...]
    """Theirs, side by side, are what it reconstructs."""

    @classmethod
    def of(cls, hookpoint: str, *, transcode: bool) -> "Wiring":
        """The wiring at a hookpoint. Raises ValueError for a transcoder of a module's input."""
        if not transcode:
            return cls((hookpoint,), (hookpoint,))
        if hookpoint.endswith(INPUT):
            raise ValueError(
                f"hookpoints must name modules to transcode, from their input to their output, got {hookpoint}; "
                f"give {hookpoint.removesuffix(INPUT)}"
            )
        return cls((hookpoint + INPUT,), (hookpoint,))

    @classmethod
    def across(cls, hookpoints: Iterable[str]) -> "Wiring":
        """The wiring of a crosscoder."""
        names = tuple(hookpoints)
        return cls(names, names)

    @property
    def hookpoints(self) -> list[str]:
        """All hookpoints that it needs, each once."""
        return list(dict.fromkeys([*self.reads, *self.writes]))

    def pair(self, activations: Mapping[str, Tensor]) -> Pair:
        """What is read and what is to be written, of activations by hookpoint."""
        x = side_by_side(activations, self.reads)
        return x, None if self.reads == self.writes else side_by_side(activations, self.writes)


def side_by_side(activations: Mapping[str, Tensor], hookpoints: tuple[str, ...]) -> Tensor:
    """The activations (…, d) at these hookpoints as one tensor (…, Σ d); of one hookpoint they are not copied."""
    if len(hookpoints) == 1:
        return activations[hookpoints[0]]
    return torch.cat([activations[hookpoint] for hookpoint in hookpoints], -1)


def to_harvest(hookpoints: Iterable[str], *, transcode: bool) -> list[str]:
    """All hookpoints that dictionaries at `hookpoints` need, those first; `transcode`: some of them are transcoders."""
    chosen = list(hookpoints)
    inputs = [Wiring.of(hookpoint, transcode=True).reads[0] for hookpoint in chosen] if transcode else []
    return list(dict.fromkeys([*chosen, *inputs]))


def written(harvested: Iterable[str], *, transcode: bool) -> list[str]:
    """Those of `to_harvest` that were chosen."""
    names = list(harvested)
    return [name for name in names if not (transcode and name.endswith(INPUT) and name.removesuffix(INPUT) in names)]
