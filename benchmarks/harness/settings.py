"""What a run of the benchmark was asked for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The same for every section."""

    device: str = "cpu"
    threads: int = 1
    repeats: int = 5
    turn_seconds: float = 1.5
    """How long a turn lasts at least, if a step is shorter than that."""
