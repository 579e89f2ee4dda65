"""The end of a run: a table for the terminal, evaluation.json, and a picture of the training curves."""

import math
from collections.abc import Mapping
from pathlib import Path

from sae.evaluation.metrics import as_json
from sae.evaluation.reconstruction import ReconstructionMetrics
from sae.report.colors import line_color
from sae.report.frontier import draw_sweep_frontier
from sae.report.labels import label_text
from sae.report.terminal import show, text
from sae.report.unused import note
from sae.runs.log import Record, read_records
from sae.storage.files import whole_file, write_json

_PANELS = {
    "fvu": "FVU (fraction of variance unexplained)",
    "l0": "L0 (latents per token)",
    "dead_fraction": "dead latents (share)",
    "auxk": "AuxK: share of the residual left",
}


def report(
    run: Path, checkpoint: Path, results: Mapping[str, ReconstructionMetrics], tokens: int, speeds: Mapping[str, float]
) -> None:
    """Print the table of held-out quality, write evaluation.json and curves.png into `run`, and say where all is.

    Raises OSError in one line, after the table, if they cannot be written.

    `speeds` are tokens per second of each autoencoder's training alone, without the language model; NaN if none was.
    """
    records = read_records(run / "metrics.jsonl")
    last = records[-1] if records else {}
    _print_table(results, {name: last.get(f"{name}/dead_fraction", 0.0) for name in results}, tokens, speeds)
    if last:
        print(f"{last['tokens_per_second']:,.0f} tokens/s end to end, language model included", flush=True)
    try:
        _write(run, results, records)
    except OSError as error:
        raise OSError(f"{run} cannot be written ({error}); the weights are saved, the table above is not") from error
    for what, path in {
        "checkpoint": checkpoint,
        "metrics": run / "metrics.jsonl",
        "curves": run / "curves.png",
        "frontier": run / "frontier.png",
    }.items():
        if path.exists():
            print(f"{what:<11} {path}")


def _write(run: Path, results: Mapping[str, ReconstructionMetrics], records: list[Record]) -> None:
    measured = as_json({name: _flat(metrics) for name, metrics in results.items()})
    write_json(run / "evaluation.json", measured)
    draw_curves(records, run / "curves.png")
    if any("/" in name for name in results):  # a sweep
        draw_sweep_frontier(results, run / "frontier.png")


def _flat(metrics: ReconstructionMetrics) -> dict[str, float]:
    """The numbers by name, those at the hookpoints of a crosscoder as in metrics.jsonl."""
    own = metrics._asdict()
    return own | {f"fvu/{hookpoint}": value for hookpoint, value in (own.pop("fvu_at") or {}).items()}


def _print_table(
    results: Mapping[str, ReconstructionMetrics], dead: Mapping[str, float], tokens: int, speeds: Mapping[str, float]
) -> None:
    from rich.table import Table

    held_out = next(iter(results.values())).tokens
    table = Table(title=f"after {tokens:,} tokens; FVU, L0 and unused on {held_out:,} held-out tokens")
    table.add_column("hookpoint", overflow="fold")
    massive = any(metrics.massive_tokens for metrics in results.values())
    for column in ("FVU", *["with massive"] * massive, "L0", "dead", "unused", "tokens/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, metrics in results.items():
        table.add_row(
            text(name),
            f"{metrics.fvu:.4f}",
            *[f"{metrics.fvu_with_massive:.4f}"] * massive,
            f"{metrics.l0:.1f}",
            f"{dead[name]:.1%}",
            f"{metrics.unused_fraction:.1%}",
            "-" if math.isnan(speeds[name]) else f"{speeds[name]:,.0f}",
        )
        for hookpoint, value in (metrics.fvu_at or {}).items():
            table.add_row(text(f"  {hookpoint}"), f"{value:.4f}")
    show(table)
    if said := note(held_out, ((metrics.unused_fraction, metrics.firings) for metrics in results.values())):
        print(said)


def draw_curves(records: list[Record], path: Path) -> None:
    """One panel per metric, one line per hookpoint, over the tokens trained on. No records, no picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator

    if not records:
        return
    names = [key.removesuffix("/fvu") for key in records[0] if key.endswith("/fvu")]
    tokens = [record["tokens"] for record in records]
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (metric, title) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        for index, name in enumerate(names):
            values = [record[f"{name}/{metric}"] for record in records]
            color = line_color(index, len(names))
            axes.plot(tokens, values, label=label_text(name), color=color, marker="." * (len(records) == 1))
        limits = {"yscale": "log"} if metric == "fvu" else {"ylim": (0, 1.05 * axes.get_ylim()[1])}
        axes.set(title=title, xlabel="tokens", **limits)
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.3)
    fvu = figure.axes[0].yaxis
    fvu.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    for formatter in (fvu.set_major_formatter, fvu.set_minor_formatter):
        formatter(FormatStrFormatter("%.3g"))
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside right upper",
        fontsize="small",
        ncols=1 + len(names) // 33,
    )
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
