"""The file of `benchmarks.as_typed` as Markdown tables."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness.report import markdown

NAMES = {"sae": "sae", "sparsify": "eai-sparsify"}
QUALITY = {
    "fvu": "FVU", "fvu_without_first": "without first", "fvu_without_massive": "without massive", "kl": "KL",
    "kl_without_first": "KL without first", "ce_recovered": "CE recovered",
    "ce_recovered_without_first": "CE without first", "unused": "unused", "dead": "dead",
}  # fmt: skip
PERCENT = ("unused", "dead")

Row = dict[str, Any]


def show(report: dict[str, Any]) -> str:
    """Everything."""
    machine = ", ".join(str(value) for value in report["machine"].values() if value)
    versions = [
        f"{name}: " + " ".join(f"{p} {v}" for p, v in found.items()) for name, found in report["versions"].items()
    ]
    parts = [f"## As typed, {report['date']}: {machine}", *versions, _summary(report["rows"])]
    for row in report["rows"]:
        parts.append("\n\n".join(_of_row(row)))
    return "\n\n".join(parts)


def _summary(rows: Sequence[Row]) -> str:
    """A line a row: how many times the peer's speed, which part of its memory."""
    cells = []
    for row in rows:
        pair = [_runs(row, library) for library in NAMES]
        if not all(pair):
            continue
        speed, total, memory = (_ratio(pair, name) for name in ("tokens_per_second", "total", "peak_bytes"))
        cells.append(
            {
                "": f"{row['case']}, {row['asked_tokens']:,} tokens",
                "sae tokens/s": _spread(pair[0], "tokens_per_second"),
                "eai-sparsify tokens/s": _spread(pair[1], "tokens_per_second"),
                "speed": f"{speed:.2f} ×",
                "whole run": f"{1 / total:.2f} ×",
                "memory": f"{memory:.2f} ×",
                "slowest window": _least(pair[0], "slowest_window"),
                "of the steps": _least(pair[0], "slowest_steps"),
            }
        )
    return markdown(list(cells[0]), cells) if cells else "nothing measured"


def _of_row(row: Row) -> list[str]:
    commands = [f"    {line}" for lines in row["commands"].values() for line in lines]
    about = f"### {row['case']}, {row['asked_tokens']:,} tokens; {row['at']}, commit {row['commit']}"
    parts = [about, "\n".join(commands)]
    if row["cache_seconds"]:
        parts.append(f"The cache took {row['cache_seconds']:.0f} s.")
    if row["failed"]:
        parts.append(f"Not measured: {row['failed']}")
    if row["runs"]:
        cells = [_times(row, library) for library in NAMES if _runs(row, library)]
        parts.append(markdown(list(cells[0]), cells))
    if row["quality"]:
        lines = _quality(row)
        parts.append(markdown(["", *QUALITY.values()], lines))
    return parts


def _times(row: Row, library: str) -> dict[str, str]:
    runs = _runs(row, library)
    seconds = {
        name: name.replace("_", " ") + " s" for name in ("start", "first_look", "training", "saving", "evaluation")
    }
    return (
        {"": NAMES[library], "tokens": f"{runs[0]['tokens']:,}", "tokens/s": _spread(runs, "tokens_per_second")}
        | {"total s": _spread(runs, "total")}
        | {label: _median(runs, name) for name, label in seconds.items()}
        | {"slowest window": _least(runs, "slowest_window"), "of the steps": _least(runs, "slowest_steps")}
        | {"peak MB": _megabytes(runs, "peak_bytes"), "until trained": _megabytes(runs, "peak_until_trained")}
        | {"other cores": " ".join("?" if run["other_cores"] is None else f"{run['other_cores']:.1f}" for run in runs)}
    )


def _quality(row: Row) -> list[dict[str, str]]:
    lines = []
    for hookpoint in [*row["hookpoints"], "all"]:
        for library in NAMES:
            numbers = row["quality"].get(library, {}).get(hookpoint)
            if numbers is None:
                continue
            dead = _runs(row, library)[0]["dead"]
            numbers = numbers | ({"dead": dead[hookpoint]} if hookpoint in dead else {})
            shown = {label: _number(name, numbers.get(name)) for name, label in QUALITY.items()}
            lines.append({"": f"{hookpoint}, {NAMES[library]}"} | shown)
    return lines


def _number(name: str, value: float | None) -> str:
    return "" if value is None else f"{value:.1%}" if name in PERCENT else f"{value:.4f}"


def _runs(row: Row, library: str) -> list[Row]:
    return [run for run in row["runs"] if run["library"] == library]


def _known(runs: Sequence[Row], name: str) -> list[float]:
    return [run[name] for run in runs if run.get(name) is not None]  # older files lack newer numbers


def _ratio(pair: Sequence[Sequence[Row]], name: str) -> float:
    mine, theirs = (statistics.median(_known(runs, name)) for runs in pair)
    return mine / theirs


def _of(values: Sequence[float], choose: Callable[[Sequence[float]], float], form: str) -> str:
    return format(choose(values), form) if values else ""


def _median(runs: Sequence[Row], name: str) -> str:
    return _of(_known(runs, name), statistics.median, ",.1f")


def _megabytes(runs: Sequence[Row], name: str) -> str:
    return f"{statistics.median(run[name] for run in runs) / 1e6:,.0f}"


def _least(runs: Sequence[Row], name: str) -> str:
    return _of(_known(runs, name), min, ".2f")


def _spread(runs: Sequence[Row], name: str) -> str:
    values = _known(runs, name)
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})" if values else ""
