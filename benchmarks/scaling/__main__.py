"""How time and memory of the trainer's own step grow with its sizes, beside what they should cost.

python -m benchmarks.scaling [--axes latents tokens …] [--out FILE]      # measure what is missing, print, draw
python -m benchmarks.scaling --show FILE

One size grows at a time from the others' defaults (`model.Size`). Each point is a run in processes of their own: the
median of at least five steps, and the peak of resident memory. The model's speeds of product and memory are measured
before each axis. An exponent is the slope of ln seconds, or ln bytes, over ln size.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS
from benchmarks.harness import machine
from benchmarks.scaling.model import Machine, Size, exponent, measured_machine, memory_bytes, step_seconds
from benchmarks.scaling.point import measured
from sae import lm

AXES = {
    "latents": (4096, 16_384, 65_536, 262_144, 1_048_576),
    "tokens": (512, 1024, 2048, 4096, 8192, 16_384),
    "k": (8, 16, 32, 64, 128),
    "hookpoints": (1, 2, 4, 8),
    "configurations": (1, 2, 4, 8),
    "processes": (1, 2, 3, 4),
}
"""Sizes that grow, one at a time."""
QUICK = {"latents": (64, 128), "k": (2, 4), "processes": (1, 2)}
"""Toy sizes, to see whether the parts work; the numbers mean nothing."""
SMALL = {"processes": Size(latents=4096, tokens=1024)}
"""What else than the default the others have, for an axis."""


def sizes_of(axis: str, most: int, *, quick: bool = False) -> list[Size]:
    """The points of an axis, without those that would take more than `most` bytes."""
    base = Size(d_in=16, latents=64, k=2, tokens=32) if quick else SMALL.get(axis, Size())
    points = [replace(base, **{axis: each}) for each in (QUICK if quick else AXES)[axis]]
    return [size for size in points if memory_bytes(size) * size.processes <= most]


def measure_axis(axis: str, sizes: list[Size], document: dict[str, Any], path: Path) -> None:
    """Measure the points of an axis that the document lacks; saved after each."""
    found = document["axes"].setdefault(axis, {"points": []})
    if len(found["points"]) == len(sizes):
        return
    speeds = measured_machine(lm.compute_dtype(torch.device("cpu")), Size())
    found["machine"] = asdict(speeds)
    for size in sizes[len(found["points"]) :]:
        point = {"size": asdict(size), **measured(size), "load": machine.load()}
        found["points"].append(point)
        document["date"] = time.strftime("%Y-%m-%d")
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(
            f"{axis} {getattr(size, axis)}: {point['seconds']:.3f} s, {point['peak_bytes'] / 1e6:.0f} MB",
            file=sys.stderr,
        )


def summary(axis: str, found: dict[str, Any]) -> dict[str, Any]:
    """Sizes, measured and the model's values of an axis, and the exponents of both.

    Of processes, what counts is each one's processor time: they have fewer cores than processes here.
    """
    points = [(Size(**point["size"]), point) for point in found["points"]]
    speeds = Machine(**found["machine"])
    seconds = "processor_seconds" if axis == "processes" else "seconds"
    rows = {
        "size": [float(getattr(size, axis)) for size, _ in points],
        "seconds": [float(point[seconds]) for _, point in points],
        "model seconds": [step_seconds(size, speeds) for size, _ in points],
        "bytes": [float(point["peak_bytes"]) for _, point in points],
        "model bytes": [memory_bytes(size) for size, _ in points],
    }
    return rows | {"exponents": {name: exponent(rows["size"], rows[name]) for name in list(rows)[1:]}}


def table(document: dict[str, Any]) -> str:
    """One row for each axis."""
    lines = ["| grows | from, to | seconds | exponent | the model's | peak memory, MB | exponent | the model's |"]
    lines.append("|---|---|---|---:|---:|---|---:|---:|")
    for axis, found in document["axes"].items():
        rows = summary(axis, found)
        power, size = rows["exponents"], [f"{each:,.0f}" for each in rows["size"]]
        seconds, memory = [f"{each:.3g}" for each in rows["seconds"]], [f"{each / 1e6:,.0f}" for each in rows["bytes"]]
        lines.append(
            f"| {axis} | {size[0]} … {size[-1]} | {', '.join(seconds)} | {power['seconds']:.2f} | "
            f"{power['model seconds']:.2f} | {', '.join(memory)} | {power['bytes']:.2f} | {power['model bytes']:.2f} |"
        )
    return "\n".join(lines)


def draw(document: dict[str, Any], path: Path) -> None:
    """Seconds and peak memory over each size, with the model's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes = document["axes"]
    figure, plots = pyplot.subplots(2, len(axes), figsize=(2.4 * len(axes), 4.6), squeeze=False, layout="constrained")
    for column, (axis, found) in enumerate(axes.items()):
        rows = summary(axis, found)
        for plot, (name, scale) in zip(plots[:, column], (("seconds", 1.0), ("bytes", 1e6)), strict=True):
            for line, style in ((name, "o-"), (f"model {name}", "--")):
                label = f"{'model' if 'model' in line else 'measured'}, exponent {rows['exponents'][line]:.2f}"
                plot.plot(rows["size"], [each / scale for each in rows[line]], style, linewidth=1, label=label)
            plot.set(xscale="log", yscale="log")
            plot.set_xticks(rows["size"], labels=[_short(each) for each in rows["size"]], fontsize=7)
            plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            for each in (plot.xaxis, plot.yaxis):
                each.set_minor_formatter(NullFormatter())
            plot.tick_params(axis="y", labelsize=7)
            plot.legend(fontsize=6, loc="best")
        plots[1][column].set_xlabel(axis)
    plots[0][0].set_ylabel("seconds a step")
    plots[1][0].set_ylabel("peak memory, MB")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _short(number: float) -> str:
    return f"{number / 2**20:g}M" if number >= 2**20 else f"{number / 1024:g}k" if number >= 1024 else f"{number:g}"


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--out", type=Path, help="JSON file; what it has is not measured again")
    parser.add_argument("--most_gb", type=float, default=8, help="leave out points that would take more memory")
    parser.add_argument("--show", type=Path, help="print and draw a file")
    parser.add_argument("--quick", action="store_true", help="toy sizes: do the parts work?")
    parser.add_argument("--plot", type=Path, help="where to draw")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    about = machine.describe("cpu", 1)
    path = (
        chosen.show or chosen.out or RESULTS / f"{time.strftime('%Y-%m-%d')}-{machine.label(about)}-step-scaling.json"
    )
    document: dict[str, Any] = {"machine": about, "versions": machine.versions([]), "axes": {}}
    if path.exists():
        document = json.loads(path.read_text())
    if not chosen.show:
        for axis in QUICK if chosen.quick else chosen.axes:
            measure_axis(axis, sizes_of(axis, int(chosen.most_gb * 1e9), quick=chosen.quick), document, path)
    print(table(document))
    if chosen.plot:
        draw(document, chosen.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
