"""The end of `sae eval`: a table for the terminal, eval.json, pictures, and one HTML file that holds it all.

Names come from strangers' files: they are shown as text and never as markup.
"""

import html
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae.evaluation.absorption import Absorbed
from sae.evaluation.evaluate import Evaluation
from sae.evaluation.metrics import Quality
from sae.evaluation.probes import Probed
from sae.evaluation.relative_norms import BINS
from sae.report import absorption, differences, probes
from sae.report.folder import write_report
from sae.report.html import document, facts, picture, table
from sae.report.pictures import draw_all
from sae.report.terminal import show_rows
from sae.report.unused import note
from sae.storage.files import write_atomically, write_json

COLUMNS = {
    "FVU": ("fvu", "{:.4f}"),
    "with massive": ("fvu_with_massive", "{:.4f}"),
    "cosine": ("cossim", "{:.4f}"),
    "L0": ("l0", "{:.1f}"),
    "unused": ("unused_fraction", "{:.1%}"),
    "rare": ("rare_fraction", "{:.1%}"),
    "KL": ("kl_div_with_sae", "{:.4f}"),
    "CE clean": ("ce_loss_without_sae", "{:.4f}"),
    "CE grafted": ("ce_loss_with_sae", "{:.4f}"),
    "recovered": ("ce_loss_score", "{:.1%}"),
    "recovered (mean)": ("ce_loss_score_mean", "{:.1%}"),
    "top-1": ("top1_agreement", "{:.1%}"),
}
"""Headings of the table, the metric under each, and how it is written."""

ON_THE_TERMINAL = ("FVU", "L0", "unused", "KL", "recovered", "top-1")
"""What fits into 80 columns; the page and eval.json have the rest."""

_NAMES = ("hookpoint", "checkpoint")

WITH_INTERVAL = ("fvu", "kl_div_with_sae")


def report_evaluation(evaluation: Evaluation, out: Path, about: Mapping[str, Any]) -> None:
    """Print the table, write eval.json, the pictures and report.html into the new folder `out`, and say where they are.

    `about` says what was measured: the command, the checkpoints, the tokens, the versions. Raises OSError in one line,
    after the table, if the folder cannot be written.
    """
    _print_table(evaluation)
    if evaluation.differences:
        _print_differences(evaluation)
    if evaluation.probes is not None:
        _print_probes(evaluation.probes, evaluation.short_labels)
    if evaluation.absorption is not None:
        _print_absorption(evaluation.absorption, evaluation.short_labels)
    sys.stdout.flush()
    write_report(out, lambda folder: _write(evaluation, folder, about))


def _write(evaluation: Evaluation, out: Path, about: Mapping[str, Any]) -> None:
    numbers = {"about": dict(about), **evaluation.to_json()}
    write_json(out / "eval.json", numbers)
    pictures = draw_all(evaluation, out)
    write_atomically(out / "report.html", page(evaluation, about, pictures).encode())


def columns(evaluation: Evaluation) -> dict[str, tuple[str, str]]:
    """Entries of COLUMNS with a number in some row."""
    found = {metric for quality in evaluation.qualities.values() for metric in quality.metrics}
    if not any(quality.metrics.get("massive_fraction") for quality in evaluation.qualities.values()):
        found.discard("fvu_with_massive")
    return {heading: column for heading, column in COLUMNS.items() if column[0] in found}


def cell(quality: Quality, metric: str, form: str) -> str:
    """A number as the table shows it, with half of its confidence interval where that matters; "-" for none."""
    value = quality.metrics.get(metric, math.nan)
    if not math.isfinite(value):
        return "-"
    low, high = quality.intervals.get(metric, (math.nan, math.nan))
    if metric not in WITH_INTERVAL or not math.isfinite(high - low):
        return form.format(value)
    return f"{form.format(value)} ± {form.format((high - low) / 2)}"


def of_parts(quality: Quality) -> dict[str, str]:
    """FVU as the tables show it of each prefix or budget, and without a skip connection, by what it is of."""
    form = COLUMNS["FVU"][1]
    found = {name.removeprefix("fvu/"): value for name, value in quality.metrics.items() if name.startswith("fvu/")}
    return {part: form.format(value) if math.isfinite(value) else "-" for part, value in found.items()}


def title(evaluation: Evaluation) -> str:
    """Heading of the table: what was measured."""
    return (
        f"{evaluation.tokens:,} tokens of {evaluation.sequences:,} sequences of {evaluation.ctx_len}; ± is half of a "
        "95 % interval"
    )


def _print_table(evaluation: Evaluation) -> None:
    several = len(evaluation.labels) > 1
    chosen = ON_THE_TERMINAL[: -1 if several else None]
    shown = {heading: column for heading, column in columns(evaluation).items() if heading in chosen}
    rows: list[list[str]] = []
    for (label, hookpoint), quality in evaluation.qualities.items():
        names = [hookpoint, *[evaluation.short_labels[label]] * several]
        numbers = [cell(quality, metric, form).replace(" ± ", "±") for metric, form in shown.values()]
        rows.append([*names, *numbers])
        for part, fvu in of_parts(quality).items():  # in the column of FVU, which is the first
            rows.append([*names[:-1], f"  {part}", fvu, *[""] * (len(shown) - 1)])
    show_rows(title(evaluation), ["hookpoint"] + ["checkpoint"] * several, list(shown), rows, once=several)
    if said := _unused(evaluation):
        print(said)


def _unused(evaluation: Evaluation) -> str | None:
    found = (quality.metrics for quality in evaluation.qualities.values() if "firings_per_latent" in quality.metrics)
    return note(evaluation.tokens, ((each["unused_fraction"], each["firings_per_latent"]) for each in found))


def _print_probes(probed: Probed, short_labels: Mapping[str, str]) -> None:
    rows = [
        [hookpoint, label or "it", *(each.split(" ± ")[0] for each in numbers)]
        for hookpoint, label, *numbers in probes.mean_rows(probed, short_labels)
    ]
    show_rows(probes.short_title(probed), _NAMES, list(probes.HEADINGS.values()), rows, once=True)


def _print_absorption(absorbed: Absorbed, short_labels: Mapping[str, str]) -> None:
    rows = [
        [hookpoint, label or "it", *(each.replace(" ± ", "±") for each in numbers)]
        for hookpoint, label, *numbers in absorption.mean_rows(absorbed, short_labels)
    ]
    headings = ["letters", *absorption.HEADINGS.values()]
    show_rows(absorption.title(absorbed), _NAMES, headings, rows, once=True)


def _print_differences(evaluation: Evaluation) -> None:
    found = differences.rows(evaluation.differences, evaluation.short_labels)
    rows = [[label or "it", *others] for label, *others in found]
    show_rows(differences.TITLE, ["checkpoint", "latents"], differences.HEADINGS, rows)


# The page


def page(evaluation: Evaluation, about: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """One HTML file that needs no network and runs no script; every name in it is escaped."""
    shown, labels = columns(evaluation), evaluation.short_labels
    quality_rows = [
        [labels[label], hookpoint, *(cell(quality, metric, form) for metric, form in shown.values())]
        for (label, hookpoint), quality in evaluation.qualities.items()
    ]
    variance_rows = [
        [hookpoint, *(f"{share:.1%}" for share in shares.values())] for hookpoint, shares in evaluation.variance.items()
    ]
    parts = [
        "<h1>How good are these dictionaries?</h1>",
        facts(about),
        f"<p>{html.escape(title(evaluation))}</p>",
        table(["checkpoint", "hookpoint", *shown], quality_rows, names=2),
        *[f"<p>{html.escape(said)}</p>" for said in [_unused(evaluation)] if said],
        *_parts(evaluation),
        *_relative_norms(evaluation),
        *differences.parts(evaluation.differences, labels),
        *probes.parts(evaluation.probes, labels),
        *absorption.parts(evaluation.absorption, labels),
        "<h2>Where the variance sits</h2>",
        "<p>The share of it in the 1 % of the tokens, and of the dimensions, that have most. Where that is most of it, "
        "FVU says little about the rest.</p>",
        table(["hookpoint", "top 1 % of tokens", "top 1 % of dimensions"], variance_rows, names=1),
        *(picture(name, image) for name, image in pictures.items()),
    ]
    return document("sae eval", parts)


def _parts(evaluation: Evaluation) -> list[str]:
    """FVU of each prefix or budget, and without a skip connection."""
    rows = [
        [evaluation.short_labels[label], hookpoint, part, fvu]
        for (label, hookpoint), quality in evaluation.qualities.items()
        for part, fvu in of_parts(quality).items()
    ]
    if not rows:
        return []
    return [
        "<h2>Parts that reconstruct by themselves</h2>",
        "<p>FVU of the first latents (prefixes), of the largest of each token (budgets), without the skip connection."
        "</p>",
        table(["checkpoint", "hookpoint", "part", "FVU"], rows, names=3, numbers=["FVU"]),
    ]


def _relative_norms(evaluation: Evaluation) -> list[str]:
    """Crosscoders' latents by the share that a hookpoint has of their decoder norms."""
    counts = [
        [label, hookpoint, *(f"{count:,}" for count in bins)]
        for label, by_hookpoint in evaluation.relative_norms.items()
        for hookpoint, bins in by_hookpoint.items()
    ]
    if not counts:
        return []
    shares = [f"to {(index + 1) / BINS:.0%}" for index in range(BINS)]
    return [
        "<h2>Decoder norms</h2>",
        "<p>Latents that fired, by ‖decoder row at the hookpoint‖ / Σ over hookpoints. Near 0 % and 100 % a latent "
        "is of other hookpoints, or of this one alone.</p>",
        table(["checkpoint", "hookpoint", *shares], counts, names=2, numbers=shares),
    ]
