"""Time, memory and the load of the machine. Standard library only: every peer's Python imports this."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

QUIET = 0.1
"""Cores that other processes may use in a round that counts."""


class Turn(NamedTuple):
    """What one turn of one contestant took."""

    seconds: float
    """Mean over the steps of the turn."""
    other_cores: float | None
    """Cores that other processes kept busy meanwhile, or that the hypervisor took; None where nobody knows."""


@dataclass(frozen=True)
class Summary:
    """Median and spread of several turns, in seconds per step."""

    median: float
    min: float
    max: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        """Raises ValueError if there are no values."""
        if not values:
            raise ValueError("a summary must have at least one value, got none; raise --repeats")
        return cls(statistics.median(values), min(values), max(values), len(values))


def interleave(contestants: Mapping[str, Callable[[], Turn]], repeats: int) -> dict[str, list[Turn]]:
    """A B C A B C …: one contestant at a time computes, in `repeats` rounds.

    A round that other processes disturbed is repeated at the end, up to `repeats` times. The quiet rounds count if
    there are enough of them, else all: which ones is decided by the load and never by the times.
    """
    rounds: list[dict[str, Turn]] = []
    while len(rounds) < 2 * repeats and sum(map(_is_quiet, rounds)) < repeats:
        rounds.append({name: take() for name, take in contestants.items()})
    quiet = [turns for turns in rounds if _is_quiet(turns)]
    return {name: [turns[name] for turns in (quiet if len(quiet) >= repeats else rounds)] for name in contestants}


def _is_quiet(turns: Mapping[str, Turn]) -> bool:
    return all(turn.other_cores is None or turn.other_cores <= QUIET for turn in turns.values())


class OtherLoad:
    """Cores that other processes keep busy, between `start` and `read`."""

    def start(self) -> None:
        """Begin to count."""
        self._wall, self._own, self._busy = time.perf_counter(), time.process_time(), busy_seconds()

    def read(self) -> float | None:
        """Cores, on average since `start`; None where the kernel does not tell."""
        now = busy_seconds()
        if now is None or self._busy is None:
            return None
        own, wall = time.process_time() - self._own, time.perf_counter() - self._wall
        return max(0.0, (now - self._busy - own) / wall)


def busy_seconds() -> float | None:
    """Seconds that all cores together were busy since boot; stolen time counts."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], object], at_least: float, *, prepare: Callable[[], object] | None = None) -> Turn:
    """One untimed call, then calls until they took `at_least` seconds; `prepare` runs untimed before each."""
    load, calls, seconds = OtherLoad(), -1, 0.0
    while calls < 1 or seconds < at_least:
        if prepare is not None:
            prepare()
        started = time.perf_counter()
        work()
        seconds += time.perf_counter() - started
        calls += 1
        if calls == 0:
            seconds = 0.0
            load.start()
    return Turn(seconds / calls, load.read())


def reset_peak() -> None:
    """Start the resident set's high-water mark anew, where the kernel can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def resident_bytes(field: str) -> int | None:
    """VmRSS (resident now) or VmHWM (its high-water mark); None where the kernel does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def available_bytes() -> int | None:
    """Memory that new work may take without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
