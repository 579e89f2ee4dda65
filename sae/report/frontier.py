"""The picture at the end of a sweep: what each combination reaches, and which no other one beats."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sae.evaluation.reconstruction import ReconstructionMetrics
from sae.report.colors import line_color
from sae.report.labels import label_text
from sae.storage.files import whole_file


def draw_sweep_frontier(results: Mapping[str, ReconstructionMetrics], path: Path) -> None:
    """FVU against L0, a point for each autoencoder, named label/hookpoint, and a line along each hookpoint's best."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    hookpoints = dict.fromkeys(name.rpartition("/")[2] for name in results)
    for index, hookpoint in enumerate(hookpoints):
        color = line_color(index, len(hookpoints))
        points = {
            name.rpartition("/")[0]: (m.l0, m.fvu) for name, m in results.items() if name.endswith(f"/{hookpoint}")
        }
        axes.plot(*zip(*points.values(), strict=True), ".", color=color)
        best = frontier(list(points.values()))
        axes.plot(*zip(*best, strict=True), "-", color=color, label=label_text(hookpoint))
        for label, point in points.items():
            axes.annotate(label_text(label), point, (4, 4), textcoords="offset points", fontsize="x-small", color=color)
    axes.set(
        title="held-out tokens; lower left is better; the line joins what no other combination beats",
        xlabel="L0 (latents per token)", xscale="log",
        ylabel="FVU (fraction of variance unexplained)", yscale="log",
    )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in one coordinate without losing in the other, by the first coordinate."""
    best: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best
