"""The goals: one table comes from the results, and its page shows it as it is; the other from one report."""

import dataclasses
import subprocess
import sys

import pytest

from benchmarks import ROOT


def test_the_page_shows_the_goals_as_the_results_have_them() -> None:
    from benchmarks.speed.goals import table

    assert table() in (ROOT / "docs" / "benchmarks" / "speed.md").read_text(encoding="utf-8")


def test_a_ratio_is_the_other_number_by_ours_and_decides() -> None:
    from benchmarks.speed import goals

    goal = goals.Goal("x", goals.EPYC, 2.0, None)
    line = goal.line((2.0, 5.0))
    assert line["measured"] == "2.50 ×" and line["verdict"] == "reached"
    assert goal.line((2.0, 3.9))["verdict"] == "missed"
    assert dataclasses.replace(goal, must=1.9).line((2.0, 3.9))["verdict"] == "must"
    assert dataclasses.replace(goal, must=1.96).line((2.0, 3.9))["verdict"] == "missed"
    assert goal.line(None)["verdict"] == "not measured"


def test_numbers_come_from_the_rows_of_the_files() -> None:
    from benchmarks.speed import goals

    steps = goals.Rows("medium", 4096, file=goals._STEPS)
    ours, theirs = steps.pair()
    assert 0.1 < ours < theirs < 2 and dataclasses.replace(steps, against=0.5).pair() == (ours, 0.5)
    typed = goals.AsTyped(goals._EPYC, "all-layers-32k", 32_768)
    assert 1 / typed.pair()[0] == pytest.approx(429, abs=1) and 1 / typed.pair()[1] == pytest.approx(245, abs=1)
    assert dataclasses.replace(typed, of="bytes").pair()[0] == pytest.approx(3.3e9, rel=0.01)


@pytest.mark.parametrize(("of", "theirs"), [("seconds", 6.5), ("bytes", 3e6), ("fvu", 0.25)])
def test_a_report_s_pair_is_our_default_and_the_best_of_what_a_peer_offers(of, theirs) -> None:
    from benchmarks.harness.measure import Summary
    from benchmarks.harness.report import Row
    from benchmarks.speed import goals

    def row(library, setting, value, **more):
        numbers = {"bytes": {"peak_bytes": value}}.get(of, {of: Summary(value, value, value, 1)})
        return Row("step", "t", 8, library, setting, **numbers, **more)

    rows = [
        row("sae", "adam", 1.0),
        row("sae", "default", 2.0),
        row("peer", "slow", 2 * theirs),
        row("peer", "best", theirs),
        row("peer", "not offered", theirs / 2, documented=False),
        dataclasses.replace(row("peer", "another task", theirs / 2), task="u"),
        Row("step", "t", 8, "peer", "failed", note="not measured"),
    ]
    goal = goals.Rows("t", 8, "peer", of=of)
    assert goal.pair_of(rows) == (2.0, theirs)
    assert dataclasses.replace(goal, setting="slow").pair_of(rows) == (2.0, 2 * theirs)
    assert dataclasses.replace(goal, against=0.5).pair_of(rows) == (2.0, 0.5)
    assert goal.pair_of(rows[2:]) is None and goal.pair_of([rows[1], *rows[4:]]) is None
    assert goal.pair() is None, "only a report has it"


def test_a_report_s_table_has_the_goals_of_its_device() -> None:
    from benchmarks import RESULTS
    from benchmarks.harness.report import Report
    from benchmarks.speed.goals import table_of

    lines = {name: table_of(Report.load(RESULTS / f"{name}.json")).splitlines() for name in (
        "2026-11-23-epyc-zen4-2-cores-step-a", "2026-11-27-h100-step-a",
    )}  # fmt: skip
    cpu, gpu = lines.values()
    (ours,) = [line for line in cpu if line.startswith("| step (a) beside eai-sparsify ")]
    assert "4.26 × | must " in ours and not any("H100" in line or "any GPU" in line for line in cpu)
    (ours,) = [line for line in gpu if line.startswith("| step (a), against 5.1 ms ")]
    assert "0.66 × | missed" in ours and not any("cores" in line or "any CPU" in line for line in gpu)


def test_the_command_prints_the_goals_and_the_tables_that_they_come_from() -> None:
    command = [sys.executable, "-m", "benchmarks", "speed"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    from benchmarks.speed.goals import table

    assert printed.startswith(table()) and "all-layers-32k, 32,768 tokens" in printed and "step: medium" in printed
    assert "`sae eval CHECKPOINT --max_tokens 1024`" in printed


def test_a_command_whose_reader_has_enough_ends_without_a_word() -> None:
    command = [sys.executable, "-m", "benchmarks", "speed"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate()[1] == b"" and process.returncode == 1
