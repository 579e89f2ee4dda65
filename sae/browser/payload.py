"""The page's data about an index, as plain JSON: the same for the server and for an export."""

from typing import Any

import numpy as np

from .findings import Context
from .layout import NONE
from .store import FLAGS, Index, Latent, Place

SIGNIFICANT = 4
"""Digits of a number that is only shown."""
LIST_COLUMNS = {"density": "f32", "max": "f32", "mean": "f32", "alignment": "f32", "last": "f32", "share": "f32",
                "flags": "u8", "token": "u32", "up": "u32", "up2": "u32", "up3": "u32", "down": "u32"}  # fmt: skip
"""The columns of the list of latents, and their types."""


def short(value: float) -> float | None:
    """A number with few digits; None where it is none."""
    return float(f"{value:.{SIGNIFICANT}g}") if np.isfinite(value) else None


def about_index(index: Index) -> dict[str, Any]:
    """What the page shows before anything else."""
    places = [
        {
            "name": place.name, "hookpoint": place.hookpoint, "latents": place.num_latents, "events": place.events,
            "path": place.header.path, "ends": place.header.ends, "crosscoder": place.header.is_crosscoder,
            "massive": int(np.count_nonzero(place.massive)),
            "ordinary": place.num_ordinary,
        }
        for place in index.places.values()
    ]  # fmt: skip
    header = index.header
    return {
        "about": header.about, "tokens": index.num_tokens, "ctx_len": header.ctx_len, "places": places,
        "flags": list(FLAGS), "why_no_logits": header.why_no_logits, "columns": LIST_COLUMNS,
    }  # fmt: skip


def list_columns(place: Place) -> dict[str, np.ndarray]:
    """A number of each latent, for each of LIST_COLUMNS."""
    up = place.column("up_tokens")
    return {
        "density": place.density, "max": place.column("max"), "mean": place.column("mean"),
        "alignment": place.column("alignment"), "last": place.last_share, "share": place.column("shares")[:, 0],
        "flags": place.flags,
        "token": place.column("share_tokens")[:, 0], "up": up[:, 0], "up2": up[:, 1], "up3": up[:, 2],
        "down": place.column("down_tokens")[:, 0],
    }  # fmt: skip


def about_latent(latent: Latent, *, top: int = 24, of_each_fifth: int = 6) -> dict[str, Any]:
    """The page of a latent, but for what goes with it."""
    facts = {name: short(value) if isinstance(value, float) else value for name, value in latent.to_dict().items()}
    return facts | {
        "ends": [short(share) for share in latent.relative_norms.values()],
        "histogram": latent.histogram.tolist(),
        "logit_histogram": latent.logit_histogram[0].tolist(),
        "logit_range": [short(float(edge)) for edge in latent.logit_histogram[1][[0, -1]]],
        "edges": [short(float(edge)) for edge in latent.edges],
        "share": _pairs((each.id, each.value) for each in latent.fires_on()),
        "by_mean": _pairs((each.id, each.value) for each in latent.fires_on(by="mean")),
        "up": _pairs((each.id, each.logit) for each in latent.promotes),
        "down": _pairs((each.id, each.logit) for each in latent.suppresses),
        "top": [about_context(each) for each in latent.top_contexts(top)],
        "fifths": [[about_context(each) for each in group] for group in latent.fifths(of_each_fifth)],
    }


def about_context(context: Context) -> dict[str, Any]:
    """A passage: token ids, and the latent's activation where it fires, by the token's place in it."""
    fired = [(at, short(value)) for at, value in enumerate(context.activations) if value > 0]
    return {"at": context.position, "peak": context.peak, "ids": context.ids, "acts": [list(pair) for pair in fired]}


def about_related(latent: Latent) -> dict[str, Any]:
    """Relations of a latent: neighbours by decoder, and latents that fire together with it."""
    names = list(latent.place.index.places)
    return {
        "neighbours": [[names.index(each.place), each.latent, short(each.cosine)] for each in latent.neighbours(12)],
        "coactive": [[each.latent, short(each.correlation), each.both] for each in latent.coactive(12)],
    }


def tokens_in(payload: Any) -> set[int]:
    """The token ids that a latent's page shows."""
    found = {token for context in [*payload["top"], *(c for group in payload["fifths"] for c in group)]
             for token in context["ids"]}  # fmt: skip
    return found | {pair[0] for name in ("share", "by_mean", "up", "down") for pair in payload[name]} - {NONE}


def _pairs(values: Any) -> list[list[Any]]:
    return [[token, short(value)] for token, value in values]
