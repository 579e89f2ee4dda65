"""The table of goals: it comes from the results, and the page shows it as it is."""

import dataclasses
import subprocess
import sys

import pytest

from benchmarks import ROOT


def test_the_page_shows_the_goals_as_the_results_have_them() -> None:
    from benchmarks.speed.reached import table

    assert table() in (ROOT / "docs" / "benchmarks" / "speed.md").read_text(encoding="utf-8")


def test_a_ratio_is_the_other_number_by_ours_and_decides() -> None:
    from benchmarks.speed import reached

    goal = reached.Goal("x", reached.EPYC, 2.0, reached.Noted(2.0, 5.0, "command"))
    assert goal.ratio == 2.5 and reached._line(goal)["verdict"] == "reached"
    assert reached._line(dataclasses.replace(goal, reach=2.6))["verdict"] == "missed"
    assert reached._line(dataclasses.replace(goal, found=None))["verdict"] == "not measured"


def test_numbers_come_from_the_rows_of_the_files() -> None:
    from benchmarks.speed import reached

    steps = reached.Step(reached._STEPS, "medium", 4096)
    ours, theirs = steps.pair()
    assert 0.1 < ours < theirs < 2 and dataclasses.replace(steps, against=0.5).pair() == (ours, 0.5)
    typed = reached.AsTyped(reached._EPYC, "all-layers-32k", 32_768)
    assert 1 / typed.pair()[0] == pytest.approx(429, abs=1) and 1 / typed.pair()[1] == pytest.approx(245, abs=1)
    assert dataclasses.replace(typed, of="bytes").pair()[0] == pytest.approx(3.3e9, rel=0.01)


def test_the_command_prints_the_goals_and_the_tables_that_they_come_from() -> None:
    command = [sys.executable, "-m", "benchmarks", "speed"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    from benchmarks.speed.reached import table

    assert printed.startswith(table()) and "all-layers-32k, 32,768 tokens" in printed and "step: medium" in printed
