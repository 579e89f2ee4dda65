"""Tables of what crosscoders say of two models, for the terminal and for the page."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sae.evaluation.differences import BINS, LEAST_ERROR, LEAST_RECONSTRUCTION, ONLY, SHARED, Difference
from sae.report.html import table

Differences = Mapping[str, Mapping[str, Difference]]
"""Results by label and dictionary."""

KINDS = {"a_only": "a alone", "between": "between", "shared": "both", "b_only": "b alone"}
TITLE = "latents of two models, by the share of b in their decoder norms; ν: medians"
HEADINGS = ("number", "not in the other", "cosine", "ν error", "ν recon")
_SHOWN = 20
"""Latents of one model that the page shows."""


def rows(found: Differences, labels: Mapping[str, str]) -> Iterator[list[str]]:
    """Checkpoint, kind of latents and a cell under each of `HEADINGS`."""
    for label, of_one in found.items():
        for each in of_one.values():
            for kind, name in KINDS.items():
                medians = each.medians(kind)
                sure = f"{int(each.confirmed(kind).sum()):,}" if kind.endswith("_only") else ""
                cells = [_number(medians[measure]) for measure in ("cosine", "nu_error", "nu_reconstruction")]
                yield [labels[label], name, f"{int(each.kinds[kind].sum()):,}", sure, *cells]


def parts(found: Differences, labels: Mapping[str, str]) -> list[str]:
    """HTML of the page's part about two models."""
    if not found:
        return []
    shares = [f"to {(index + 1) / BINS:.0%}" for index in range(BINS)]
    said = {(label, name): each.to_json() for label, of_one in found.items() for name, each in of_one.items()}
    norms = [[labels[label], name, *(f"{n:,}" for n in each["relative_norm"])] for (label, name), each in said.items()]
    return [
        "<h2>Two models</h2>",
        f"<p>Latents that fired, by b's share of their decoder norms: at most {ONLY[0]:.0%} is a alone, "
        f"{SHARED[0]:.0%} to {SHARED[1]:.0%} both, at least {ONLY[1]:.0%} b alone. ν is what latent scaling finds of a "
        "latent in the other model, beside its own: in the error of the reconstruction (its decoder row has shrunk "
        "there) and in the reconstruction (other latents stand for it). A latent is not in the other model below "
        f"{LEAST_ERROR} and {LEAST_RECONSTRUCTION}.</p>",
        table(["checkpoint", "latents", *HEADINGS], rows(found, labels), names=2, numbers=HEADINGS),
        table(["checkpoint", "dictionary", *shares], norms, names=2, numbers=shares),
        *_listed(said, labels),
    ]


def _listed(said: Mapping[tuple[str, str], Mapping[str, Any]], labels: Mapping[str, str]) -> list[str]:
    """Latents of one model alone that fire on most tokens."""
    headings = ["latent", "tokens", "share of b", "ν error", "ν recon"]
    lines = [
        [
            labels[label], KINDS[kind], "yes" if one["confirmed"] else "", one["latent"], f"{one['fired']:,}",
            _number(one["relative_norm"]), _number(one["nu_error"]), _number(one["nu_reconstruction"]),
        ]
        for (label, _), each in said.items()
        for kind in ("a_only", "b_only")
        for one in each[kind][:_SHOWN]
    ]  # fmt: skip
    if not lines:
        return []
    told = f"<p>The {_SHOWN} of each that fire on most tokens; eval.json has more.</p>"
    return [told, table(["checkpoint", "of", "not in the other", *headings], lines, names=3, numbers=headings)]


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
