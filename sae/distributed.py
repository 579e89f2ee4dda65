"""The processes of a run. The only place that knows of more than one."""

import os
from typing import NamedTuple


class World(NamedTuple):
    """Which process this is, of how many. With one process everything is the identity."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls, *, distribute_layers: bool = False) -> "World":
        """The world that torchrun describes in the environment. Raises ValueError for more than one process."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1:
            raise ValueError(
                f"WORLD_SIZE must be 1, got {size}: training on several processes is not built yet; "
                "start it with python -m sae instead of torchrun"
            )
        if distribute_layers:
            raise ValueError(
                "distribute_layers needs training on several processes, which is not built yet; "
                "leave out --distribute_layers"
            )
        return cls()

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0
