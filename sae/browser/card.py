"""A latent as a piece of HTML, for notebooks. Every text in it is escaped: data sets are strangers' texts."""

import html
from typing import Any

_BOX = "font:13px/1.5 system-ui,sans-serif;max-width:60rem;border:1px solid #8884;border-radius:8px;padding:.8rem 1rem"


def latent_card(latent: Any) -> str:
    """What a notebook shows for a latent: its numbers, what it promotes, and its strongest contexts."""
    place = latent.place
    numbers = {
        "density": f"{latent.density:.3%}", "max": f"{latent.max:.3g}", "mean": f"{latent.mean:.3g}",
        "flags": ", ".join(latent.flags) or "none",
    }  # fmt: skip
    facts = " · ".join(f"{name} <b>{html.escape(value)}</b>" for name, value in numbers.items())
    lines = [f"<div style='{_BOX}'><b>{html.escape(place.name)} / {latent.index}</b> · {facts}"]
    if latent.promotes:
        up = " ".join(f"<code>{html.escape(each.token)}</code>" for each in latent.promotes[:8])
        lines.append(f"<div style='opacity:.8'>promotes {up}</div>")
    if not latent.count:
        lines.append(f"<div>It never fires on these {place.index.num_tokens:,} tokens.</div>")
    lines += [_line(context, latent.max) for context in latent.top_contexts(8)]
    return "\n".join([*lines, "</div>"])


def _line(context: Any, largest: float) -> str:
    spans = [
        f"<span style='background:rgba(230,140,0,{value / largest * 0.75:.2f})' title='{value:.3g}'>"
        f"{html.escape(text)}</span>"
        for text, value in zip(context.tokens, context.activations, strict=True)
    ]
    style = "white-space:pre-wrap;border-top:1px solid #8883;padding:.25rem 0"
    return f"<div style='{style}'><b>{context.activation:.3g}</b> {''.join(spans)}</div>"


def place_card(place: Any) -> str:
    """What a notebook shows for a dictionary."""
    dead = int((place.flags & 1).sum())
    return (
        f"<div style='{_BOX}'><b>{html.escape(place.name)}</b>: {place.num_latents:,} latents, {dead:,} dead on "
        f"{place.index.num_tokens:,} tokens</div>"
    )
