"""What the command sets for its process, before PyTorch is imported."""

import os
from pathlib import Path

import pytest

from sae import __main__ as command


@pytest.mark.parametrize(
    ("running", "cores", "expected"),
    [
        ("1/99", 2, {"GOMP_SPINCOUNT": "30000"}),
        ("2/99", 2, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ("5/99", 32, {"GOMP_SPINCOUNT": "30000"}),
        ("6/99", 32, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ("riddle", 2, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_threads_spin_only_where_cores_are_idle(
    running: str, cores: int, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(Path, "read_text", lambda self: f"0.10 0.20 0.30 {running} 4711")
    command._choose_waiting()
    assert os.environ == expected


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {name: "own"})
    command._choose_waiting()
    assert os.environ == {name: "own"}


@pytest.mark.parametrize(("takes", "calls"), [(1, [(-3, 2**25), (-1, 2**28)]), (0, [(-3, 2**25)])])
def test_memory_is_kept_where_glibc_takes_both_thresholds(
    takes: int, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trim threshold alone would fix the other one at 128 KB, and each tensor would be mapped anew."""
    made: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, name: int, value: int) -> int:
            made.append((name, value))
            return takes

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(command.ctypes, "CDLL", lambda name: Library())
    command._keep_freed_memory()
    assert made == calls


def test_a_system_that_does_not_say_counts_as_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert command._others_run()
