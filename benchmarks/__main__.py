"""Print every table of docs/benchmarks/speed.md from what was measured: `python -m benchmarks speed`."""

import argparse
import json

from benchmarks import RESULTS
from benchmarks.as_typed.tables import show
from benchmarks.harness.report import Report, tables
from benchmarks.speed.goals import GOALS, AsTyped, Noted, Rows, table


def main() -> None:
    """Print the goals, then the commands and the tables that their numbers come from. Measures nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["speed"])
    parser.parse_args()
    print(table(), end="\n\n")
    for goal in GOALS:
        if isinstance(goal.found, Noted):
            print(f"- {goal.what}: `{goal.found.command}`")
    typed, rows = (
        sorted({goal.found.file for goal in GOALS if isinstance(goal.found, kind) and goal.found.file})
        for kind in (AsTyped, Rows)
    )
    for file in typed:
        print("", show(json.loads((RESULTS / file).read_text(encoding="utf-8"))), sep="\n")
    for file in rows:
        print("", tables(Report.load(RESULTS / file)), sep="\n")


if __name__ == "__main__":
    main()
