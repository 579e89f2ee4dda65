"""Measure this library and its peers side by side, in one run: `python -m benchmarks.speed --help`."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import RESULTS
from benchmarks.harness import machine
from benchmarks.harness.report import Report, Row, tables
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import OURS, PRODUCTS, SHAPES
from benchmarks.peers import environments
from benchmarks.speed import goals
from benchmarks.speed.end_to_end import RUNS, TINY, end_to_end_rows
from benchmarks.speed.quality import SEEDS, STEPS, quality_rows
from benchmarks.speed.stages import stage_rows
from benchmarks.speed.steps import contestants_for, step_rows

SECTIONS = ("step", "stage", "quality", "end-to-end")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables, write the JSON file; returns the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if not any(chosen.model in run.name for run in RUNS):
        parser.error(f"--model must be in one of {'; '.join(run.name for run in RUNS)}, got {chosen.model!r}")
    if chosen.show:
        show(Report.load(chosen.show))
        return 0
    report = quick(chosen) if chosen.quick else full(chosen)
    show(report)
    return 0


def show(report: Report) -> None:
    """Print everything."""
    print(tables(report), goals.table_of(report), sep="\n\n")


def full(chosen: argparse.Namespace) -> Report:
    """All that was asked for, saved after every row: what a crash leaves behind can be shown."""
    settings = Settings(chosen.device, machine.available_cores(), chosen.repeats)
    report = _new_report(settings, chosen)
    path = chosen.out or RESULTS / f"{report.date}-{machine.label(report.machine)}.json"
    for row in _rows(chosen, settings):
        _progress(row)
        report.rows.append(row)
        report.settings["load_after"] = machine.load()
        report.save(path)
    return report


def quick(chosen: argparse.Namespace) -> Report:
    """The same machinery on toy sizes and on this library alone: do the parts work? The numbers mean nothing."""
    settings = Settings("cpu", threads=1, repeats=2, turn_seconds=0.01)
    chosen.libraries = ["sae"]
    report = _new_report(settings, chosen)
    tiny, tokens = SHAPES["tiny"], SHAPES["tiny"].cpu_tokens[0]
    report.rows += step_rows(tiny, tokens, (OURS, PRODUCTS[0]), settings)
    report.rows += stage_rows(tiny, tokens, settings)
    report.rows += quality_rows(tiny, tokens, ["sae"], settings, steps=5, seeds=(0,))
    report.rows += end_to_end_rows([TINY], ["sae"], settings)
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.out or Path(folder) / "quick.json"
        report.save(path)
        if Report.load(path) != report:
            raise RuntimeError("a report must be the same after saving and loading, and is not")
    return report


def _rows(chosen: argparse.Namespace, settings: Settings) -> Iterator[Row]:
    cuda = settings.device == "cuda"
    for shape in (SHAPES[name] for name in chosen.shapes):
        for tokens in chosen.tokens or (shape.cuda_tokens if cuda else shape.cpu_tokens):
            if "step" in chosen.sections:
                contestants = contestants_for(settings.device, chosen.libraries, chosen.settings)
                yield from step_rows(shape, tokens, contestants, settings)
        largest = max(chosen.tokens or (shape.cuda_tokens if cuda else shape.cpu_tokens))
        if "stage" in chosen.sections and shape.name != "b":
            yield from stage_rows(shape, largest, settings)
    if "quality" in chosen.sections:
        yield from quality_rows(SHAPES["small"], 1024, chosen.libraries, settings, steps=STEPS, seeds=SEEDS)
    if "end-to-end" in chosen.sections:
        runs = [run for run in RUNS if chosen.model in run.name]
        yield from end_to_end_rows(runs, chosen.libraries, settings, chosen.settings)


def _new_report(settings: Settings, chosen: argparse.Namespace) -> Report:
    return Report(
        date=time.strftime("%Y-%m-%d"),
        machine=machine.describe(settings.device, settings.threads),
        versions=machine.versions(chosen.libraries),
        settings={"repeats": settings.repeats, "turn_seconds": settings.turn_seconds, "load_before": machine.load()},
    )


def _progress(row: Row) -> None:
    done = f"{row.seconds.median * 1e3:.3g} ms" if row.seconds else f"FVU {row.fvu.median:.4f}" if row.fvu else row.note
    print(
        f"{time.strftime('%H:%M:%S')} {row.section}, {row.task}, {row.tokens}: {row.library}, {row.setting}: {done}",
        file=sys.stderr,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("sections", nargs="*", default=[], help=f"of {', '.join(SECTIONS)}; all if none is named")
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes, this library alone: check the benchmark itself"
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["small", "medium", "a", "b"], metavar="SHAPE")
    parser.add_argument("--tokens", nargs="+", type=int, help="per step, instead of the shape's own")
    libraries = ["sae", *environments.PEERS]
    parser.add_argument("--libraries", nargs="+", choices=libraries, default=libraries, metavar="LIBRARY")
    parser.add_argument(
        "--settings", nargs="+", default=[], metavar="SETTING", help="of a step or run; all if none is named"
    )
    parser.add_argument("--model", default="", metavar="TEXT", help="end to end, only what has this in its name")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file; by default benchmarks/results/<date>-<machine>.json")
    parser.add_argument("--show", type=Path, help="print the tables of a JSON file, and measure nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
