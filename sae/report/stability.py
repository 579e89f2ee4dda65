"""The end of `sae eval --stability`: a table, eval.json, the histograms, and one HTML file that holds it all."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.evaluation.metrics import as_json
from sae.evaluation.stability import BINS, SHARED, Stability
from sae.report.colors import line_color
from sae.report.folder import write_report
from sae.report.html import document, facts, picture, table
from sae.report.labels import label_text
from sae.report.pictures import png
from sae.report.terminal import show_rows
from sae.storage.files import write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any


def report_stability(found: Sequence[Stability], out: Path, about: Mapping[str, Any]) -> None:
    """Print the table and write eval.json, stability.png and report.html into the new folder `out`.

    Raises OSError in one line, after the table, if the folder cannot be written.
    """
    title = "latents paired one to one by |cosine| of their rows of W_dec"
    show_rows(title, NAMES, HEADINGS, rows(found))
    write_report(out, partial(_write, found, about))


def _write(found: Sequence[Stability], about: Mapping[str, Any], out: Path) -> None:
    image = png(partial(draw_histograms, found))
    numbers = {"about": dict(about), "stability": as_json([each.to_json() for each in found])}
    write_json(out / "eval.json", numbers)
    write_atomically(out / "stability.png", image)
    write_atomically(out / "report.html", page(found, about, image).encode())


NAMES = ("hookpoint", "checkpoint", "other")
HEADINGS = ("PW-MCC", *(f"≥ {least:g}" for least in SHARED), "latents", "pairs")


def rows(found: Sequence[Stability]) -> list[list[str]]:
    """A row for each pair, under `NAMES` and `HEADINGS`."""
    return [[one.hookpoint, one.checkpoint, one.other, *_cells(one)] for one in found]


def _cells(one: Stability) -> list[str]:
    sizes = " and ".join(f"{size:,}" for size in dict.fromkeys(one.latents))
    return [f"{one.pw_mcc:.4f}", *(f"{share:.1%}" for share in one.shared.values()), sizes, one.matching]


def page(found: Sequence[Stability], about: Mapping[str, Any], image: bytes) -> str:
    """One HTML file."""
    return document("sae eval --stability", [
        "<h1>Which latents do these dictionaries share?</h1>",
        facts(about),
        "<p>Latents are paired one to one by the |cosine| of their rows of W_dec. PW-MCC is the mean over the pairs; "
        f"≥ {SHARED[0]:g} is the share of them with at least so much.</p>",
        table([*NAMES, *HEADINGS], rows(found), names=len(NAMES)),
        picture("stability", image),
    ])  # fmt: skip


def draw_histograms(found: Sequence[Stability], figure: Figure) -> None:
    """One line per pair of dictionaries: pairs of latents by |cosine|."""

    axes = figure.subplots()
    edges = [index / BINS for index in range(BINS + 1)]
    for index, one in enumerate(found):
        label = label_text(f"{one.hookpoint}: {one.other}")
        axes.stairs(one.histogram, edges, label=label, color=line_color(index, len(found)))
    axes.set(xlim=(0, 1), xlabel="|cosine| of a latent and its partner", ylabel="latents", title="shared latents")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", ncols=1 + len(found) // 20)
