"""Print every table of docs/benchmarks/speed.md from what was measured: `python -m benchmarks speed`."""

import argparse
import json

from benchmarks import RESULTS
from benchmarks.as_typed.tables import show
from benchmarks.harness.report import Report, tables
from benchmarks.speed.reached import GOALS, AsTyped, Step, table


def main() -> None:
    """Print the goals, then the tables of the files that they come from. Measures nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["speed"])
    parser.parse_args()
    print(table())
    of = {kind: sorted({goal.found.file for goal in GOALS if isinstance(goal.found, kind)}) for kind in (AsTyped, Step)}
    for file in of[AsTyped]:
        print("", show(json.loads((RESULTS / file).read_text(encoding="utf-8"))), sep="\n")
    for file in of[Step]:
        print("", tables(Report.load(RESULTS / file)), sep="\n")


if __name__ == "__main__":
    main()
