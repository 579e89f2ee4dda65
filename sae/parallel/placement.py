"""Which rank holds which autoencoder, or which part of one. Plain values from pure functions; nothing is sent here."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Placement(NamedTuple):
    """Ranks in groups of `shards`. A group holds an autoencoder together, each rank an equal part of its latents."""

    size: int = 1
    """Ranks in all; a multiple of `shards`."""
    shards: int = 1
    """Ranks of a group."""
    owners: Mapping[str, int] | None = None
    """The group that holds each autoencoder. None: every group holds a copy of each."""
    hookpoints: Mapping[str, Sequence[str]] | None = None
    """What each autoencoder reads and writes, where it has an owner."""

    @property
    def groups(self) -> int:
        """The number of groups."""
        return self.size // self.shards

    def group(self, rank: int) -> int:
        """The group of a rank: neighbours share one, because they are mostly on one machine."""
        return rank // self.shards

    def members(self, rank: int) -> list[int]:
        """The ranks of this rank's group; the n-th holds the n-th part."""
        first = self.group(rank) * self.shards
        return list(range(first, first + self.shards))

    def part(self, rank: int) -> int:
        """Which part of its autoencoders' latents the rank holds."""
        return rank % self.shards

    def holds(self, rank: int, name: str) -> bool:
        """Whether the rank holds the autoencoder, or a part of it."""
        return self.owners is None or self.owners[name] == self.group(rank)

    def replicas(self, rank: int) -> list[int]:
        """The ranks that hold the same parts of the same autoencoders, this one included."""
        return [rank] if self.owners is not None else self.peers(rank)

    def peers(self, rank: int) -> list[int]:
        """The rank of each group that holds the same part of its autoencoders, this one included."""
        return list(range(self.part(rank), self.size, self.shards))

    def sends(self, source: int, target: int, hookpoint: str) -> bool:
        """Whether `target` trains on the tokens that `source` harvested at `hookpoint`."""
        if self.owners is None or self.hookpoints is None:
            return self.group(source) == self.group(target)
        return any(self.holds(target, name) for name, needed in self.hookpoints.items() if hookpoint in needed)

    @property
    def moves(self) -> bool:
        """Whether activations move between ranks at all."""
        return self.size > 1 and (self.shards > 1 or self.owners is not None)


def placement_of(
    costs: Mapping[str, int], hookpoints: Mapping[str, Sequence[str]], *, size: int, shards: int, distribute: bool
) -> Placement:
    """The placement, on `size` ranks, of autoencoders whose steps cost `costs` and that need `hookpoints`.

    With `distribute` each lives in one group. The most expensive is placed first, each in the group with the least work
    so far. The busiest group then has at most 4/3 of the least possible (Graham 1969, doi:10.1137/0117039).
    """
    if not distribute:
        return Placement(size, shards)
    loads = [0] * (size // shards)
    owners = {}
    for name in sorted(costs, key=lambda name: -costs[name]):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += costs[name]
    return Placement(size, shards, owners, dict(hookpoints))
