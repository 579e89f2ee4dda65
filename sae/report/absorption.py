"""Tables of the absorption of first letters, for the terminal and for the page."""

import math
from collections.abc import Mapping

from sae.evaluation.absorption import Absorbed, Letter
from sae.report.html import table

HEADINGS = {
    "mean_absorption_fraction_score": "absorbed",
    "mean_full_absorption_score": "in full",
    "mean_num_split_features": "split",
}
"""The metrics, and what stands above each."""
ABOUT = (
    "A linear probe finds the first letter of a word. Absorbed: the part of it, in the mean over test words, that "
    "other latents hold in place of the letter's own. In full: the share of words where the own ones are silent and "
    "one other has taken over. Split: further latents of a letter beside its first."
)


def title(absorbed: Absorbed) -> str:
    """Heading of the table."""
    return f"Absorption of first letters, {absorbed.words:,} words, mean over letters; less is better"


def mean_rows(absorbed: Absorbed, short_labels: Mapping[str, str]) -> list[list[str]]:
    """Hookpoint, label, number of letters, and a cell under each of `HEADINGS`, hookpoint by hookpoint."""
    order = list(dict.fromkeys(hookpoint for _, hookpoint in absorbed.by_letter))
    keys = sorted(absorbed.by_letter, key=lambda key: order.index(key[1]))
    return [
        [
            hookpoint,
            short_labels.get(label, label),
            str(len(absorbed.by_letter[label, hookpoint])),
            *_cells(absorbed, (label, hookpoint)),
        ]
        for label, hookpoint in keys
    ]


def _cells(absorbed: Absorbed, key: tuple[str, str]) -> list[str]:
    found = (absorbed.mean(key, metric) for metric in HEADINGS)
    return [
        "-" if math.isnan(mean) else f"{mean:.3f}" + (f" ± {half:.3f}" if math.isfinite(half) else "")
        for mean, half in found
    ]


def parts(absorbed: Absorbed | None, short_labels: Mapping[str, str]) -> list[str]:
    """HTML of the page's part about absorption."""
    if absorbed is None:
        return []
    by_letter = [
        [hookpoint, short_labels.get(label, label), *_letter(each)]
        for (label, hookpoint), letters in absorbed.by_letter.items()
        for each in letters
    ]
    of_one = ["letter", "probe's F1", "absorbed", "in full", "words", "split", "latents of the letter"]
    return [
        "<h2>Absorption</h2>",
        f"<p>{title(absorbed)}. ± is half of a 95 % interval over letters. {ABOUT}</p>",
        table(["hookpoint", "checkpoint", "letters", *HEADINGS.values()], mean_rows(absorbed, short_labels), names=2),
        table(["hookpoint", "checkpoint", *of_one], by_letter, names=3),
    ]


def _letter(each: Letter) -> list[str]:
    rates = [f"{value:.3f}" for value in each[1:4]]
    counts = [f"{each.num_probe_true_positives:,}", str(each.num_split_features)]
    return [each.first_letter, *rates, *counts, ", ".join(map(str, each.latents))]
