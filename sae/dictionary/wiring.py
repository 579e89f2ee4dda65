"""What a dictionary reads and writes: an autoencoder one hookpoint, a transcoder a module's input and its output."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

INPUT = ".input"
"""What the name of a hookpoint ends with that is a module's input."""

Pair = tuple[Tensor, Tensor | None]
"""x (tokens, d_in), which is read, and y (tokens, d_out), which is to be written; None: x itself."""


class Wiring(NamedTuple):
    """The hookpoints of one dictionary."""

    reads: str
    writes: str

    @classmethod
    def of(cls, hookpoint: str, *, transcode: bool) -> "Wiring":
        """The wiring at a hookpoint. Raises ValueError for a transcoder of a module's input."""
        if not transcode:
            return cls(hookpoint, hookpoint)
        if hookpoint.endswith(INPUT):
            raise ValueError(
                f"hookpoints must name modules to transcode, from their input to their output, got {hookpoint}; "
                f"give {hookpoint.removesuffix(INPUT)}"
            )
        return cls(hookpoint + INPUT, hookpoint)

    def pair(self, activations: dict[str, Tensor]) -> Pair:
        """What is read and what is to be written, of activations by hookpoint."""
        x = activations[self.reads]
        return x, None if self.reads == self.writes else activations[self.writes]


def to_harvest(hookpoints: Iterable[str], *, transcode: bool) -> list[str]:
    """All hookpoints that dictionaries at `hookpoints` need, those first; `transcode`: some of them are transcoders."""
    chosen = list(hookpoints)
    inputs = [Wiring.of(hookpoint, transcode=True).reads for hookpoint in chosen] if transcode else []
    return list(dict.fromkeys([*chosen, *inputs]))


def written(harvested: Iterable[str], *, transcode: bool) -> list[str]:
    """Those of `to_harvest` that were chosen."""
    names = list(harvested)
    return [name for name in names if not (transcode and name.endswith(INPUT) and name.removesuffix(INPUT) in names)]
