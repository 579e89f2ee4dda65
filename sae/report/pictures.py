"""Pictures of an evaluation: by layer, by position, densities, and the frontier of several checkpoints."""

import io
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.evaluation.evaluate import Evaluation
from sae.evaluation.metrics import BINS_PER_DECADE, DECADES, Quality
from sae.report.colors import line_color
from sae.report.frontier import frontier
from sae.report.labels import label_text
from sae.storage.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:  # it takes a second to import, and the tests' shape checks look annotations up at run time
    Figure = Any

_BY_LAYER = {
    "fvu": "FVU",
    "kl_div_with_sae": "KL(clean ‖ grafted), nats",
    "unused_fraction": "unused latents (share)",
}
_BY_POSITION = {metric: _BY_LAYER[metric] for metric in ("fvu", "kl_div_with_sae")}


def draw_all(evaluation: Evaluation, out: Path) -> dict[str, bytes]:
    """Write the pictures into `out`; returns each PNG by its name."""
    drawings: dict[str, Callable[[Evaluation, Figure], None]] = {
        "by_layer": draw_by_layer,
        "by_position": draw_by_position,
        "densities": draw_densities,
    }
    if len(evaluation.labels) > 1:
        drawings["frontier"] = draw_frontier
    images = {}
    for name, draw in drawings.items():
        images[name] = png(partial(draw, evaluation))
        write_atomically(out / f"{name}.png", images[name])
    return images


def png(draw: Callable[[Figure], None]) -> bytes:
    """A picture of what `draw` puts into a figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the font lacks are shown as boxes
        figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def draw_by_layer(evaluation: Evaluation, figure: Figure) -> None:
    """One panel per metric, one line per checkpoint, over the hookpoints."""
    hookpoints = list(evaluation.variance)
    panels = _with_numbers(evaluation, _BY_LAYER)
    for axes, (metric, heading) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for index, label in enumerate(evaluation.labels):
            chosen = [evaluation.qualities.get((label, hookpoint)) for hookpoint in hookpoints]
            values = [math.nan if quality is None else quality.metrics.get(metric, math.nan) for quality in chosen]
            color = line_color(index, len(evaluation.labels))
            axes.errorbar(
                range(len(hookpoints)), values, yerr=[_half(quality, metric) for quality in chosen],
                label=label_text(evaluation.short_labels[label] or "it"), color=color, marker="o", capsize=3,
            )  # fmt: skip
        axes.set(title=heading, ylim=(0, 1.05 * axes.get_ylim()[1]))
        axes.set_xticks(range(len(hookpoints)), [label_text(name) for name in hookpoints], rotation=45, ha="right")
        axes.grid(alpha=0.3)
    _legend(figure)


def draw_by_position(evaluation: Evaluation, figure: Figure) -> None:
    """One panel per metric, one line per autoencoder, over the positions in the sequence."""
    keys = [key for key in evaluation.qualities if key[1] in evaluation.variance]
    positions = list(evaluation.qualities[keys[0]].by_position)
    panels = {
        metric: heading
        for metric, heading in _BY_POSITION.items()
        if any(metric in values for key in keys for values in evaluation.qualities[key].by_position.values())
    }
    for axes, (metric, heading) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for index, key in enumerate(keys):
            by_position = evaluation.qualities[key].by_position
            values = [by_position[position].get(metric, math.nan) for position in positions]
            axes.plot(values, label=_name(evaluation, key), color=line_color(index, len(keys)), marker=".")
        axes.set(title=heading, xlabel="position in the sequence", ylim=(0, None))
        axes.set_xticks(range(len(positions)), positions, rotation=45)
        axes.grid(alpha=0.3)
    _legend(figure)


def draw_densities(evaluation: Evaluation, figure: Figure) -> None:
    """One line per autoencoder: how many latents fire how often."""
    axes = figure.subplots()
    keys = [key for key in evaluation.qualities if key[1] in evaluation.variance]
    edges = [-DECADES + index / BINS_PER_DECADE for index in range(DECADES * BINS_PER_DECADE + 1)]
    for index, key in enumerate(keys):
        axes.stairs(
            evaluation.qualities[key].density, edges, label=_name(evaluation, key), color=line_color(index, len(keys))
        )
    lowest = min((bin for key in keys for bin, n in enumerate(evaluation.qualities[key].density) if n), default=0)
    axes.set(
        xlim=(edges[lowest] - 0.25, 0.1),
        xlabel="log10 of the share of tokens that a latent fires on",
        ylabel="latents",
        title="densities of the latents",
    )
    axes.grid(alpha=0.3)
    _legend(figure)


def draw_frontier(evaluation: Evaluation, figure: Figure) -> None:
    """FVU and KL against L0: a point per checkpoint, and per hookpoint a line along those that no other one beats."""
    metrics = _with_numbers(evaluation, _BY_POSITION)
    hookpoints = list(evaluation.variance)
    for axes, (metric, heading) in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics.items(), strict=True
    ):
        for index, hookpoint in enumerate(hookpoints):
            color = line_color(index, len(hookpoints))
            points = {
                label: (quality.metrics["l0"], quality.metrics[metric])
                for (label, name), quality in evaluation.qualities.items()
                if name == hookpoint
            }
            axes.plot(*zip(*points.values(), strict=True), "o", color=color)
            axes.plot(
                *zip(*frontier(list(points.values())), strict=True), "-", color=color, label=label_text(hookpoint)
            )
            for label, point in points.items():
                shown = label_text(evaluation.short_labels[label])
                axes.annotate(shown, point, (4, 4), textcoords="offset points", fontsize="x-small", color=color)
        axes.set(title=f"{heading}, against L0", xlabel="L0 (latents per token)")
        axes.margins(0.12)
        axes.grid(alpha=0.3)
    _legend(figure)


def _with_numbers(evaluation: Evaluation, metrics: dict[str, str]) -> dict[str, str]:
    found = {metric for quality in evaluation.qualities.values() for metric in quality.metrics}
    return {metric: heading for metric, heading in metrics.items() if metric in found}


def _half(quality: Quality | None, metric: str) -> float:
    low, high = (math.nan, math.nan) if quality is None else quality.intervals.get(metric, (math.nan, math.nan))
    return (high - low) / 2


def _name(evaluation: Evaluation, key: tuple[str, str]) -> str:
    label, hookpoint = key
    return label_text(f"{evaluation.short_labels[label]} {hookpoint}" if len(evaluation.labels) > 1 else hookpoint)


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small", ncols=1 + len(labels) // 20)
