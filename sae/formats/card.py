"""The card of a repository of dictionaries, which the hub shows and tools read."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sae.formats.describe import Description
from sae.formats.format import About

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SHOWN = ("fvu", "fvu_with_massive", "l0", "unused_fraction", "kl_div_with_sae", "ce_loss_score", "top1_agreement")

_SPARSIFY_KNOWS = ("topk", "groupmax")
"""Rules of which EleutherAI's library loads our files."""
_LOADS = {
    "saelens": 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("{folder}{first}")  # of a local copy',
    "circuit-tracer": "from circuit_tracer import ReplacementModel\n\n# config.yaml is in {folder} of {name}",
    "eleuther": 'from sparsify import Sae\n\nsae = Sae.load_from_hub("{name}", hookpoint="{first}")',
    "dictionary-learning": "# ae.pt and config.json are in {folder}{first} of {name}",
}


def card(
    name: str,
    found: Mapping[str, Description],
    about: About,
    formats: Sequence[str],
    *,
    run: Mapping[str, Any],
    measured: Mapping[str, Mapping[str, float]],
    license: str,
) -> str:
    """The text of README.md. `run` is what was trained and how, in the order shown; `measured` is by hookpoint."""
    first = next(iter(found))
    tags = [
        "sparse-autoencoder",
        "mechanistic-interpretability",
        *dict.fromkeys(_plain(d.rule) for d in found.values()),
    ]
    head: dict[str, Any] = {"library_name": "sae", "tags": tags, "license": license}
    models = [name for name in (about.model, about.model_b) if name]
    bases = [name for name in models if _HUB_ID.fullmatch(name)]
    head |= {"base_model": bases[0] if len(bases) == 1 else bases} if bases else {}
    head |= {"datasets": [about.dataset]} if _HUB_ID.fullmatch(about.dataset) else {}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", "", f"# {name}", ""]
    of = " and ".join(map(_code, models or ["a language model"]))
    lines += [f"{len(found)} dictionaries of the activations of {of}.", ""]
    lines += _table(
        ["hookpoint", "width", "latents", "rule", "type"],
        [[_code(h), f"{d.d_in:,}", f"{d.num_latents:,}", d.rule, d.dtype] for h, d in found.items()],
    )
    if measured:
        shown = [metric for metric in _SHOWN if any(metric in values for values in measured.values())]
        cells = [[_code(h), *(f"{v[m]:.4f}" if m in v else "" for m in shown)] for h, v in measured.items()]
        lines += ["## Measured on held-out tokens", "", *_table(["hookpoint", *shown], cells)]
    lines += [
        "## Load",
        "",
        "```python",
        *_how_to_load(name, first, found[first].rule),
        "```",
        "",
    ]
    for each in formats:
        if each in _LOADS and (each != "eleuther" or _plain(found[first].rule) in _SPARSIFY_KNOWS):
            folder = "" if each == formats[0] else f"{each}/"  # the first stands at the top
            lines += ["```python", _LOADS[each].format(name=name, first=first, folder=folder), "```", ""]
    if run:
        lines += ["## Trained", "", *_table(["option", "value"], [[_code(k), _code(str(v))] for k, v in run.items()])]
    return "\n".join(lines).rstrip() + "\n"


def _how_to_load(name: str, first: str, rule: str) -> list[str]:
    """Lines of Python: one dictionary, or all layers of a cross-layer transcoder, which reconstruct together.

    Of several configurations, of a sweep, it is the first one.
    """
    if not rule.startswith("cross_layer"):
        return ["from sae import Sae", "", f'sae = Sae.load_from_hub("{name}", "{first}")']
    return [
        "from sae import Sae, graft",
        "from sae.dictionary.cross_layer import coders",
        "",
        f'layers = Sae.load_many("{name}"{_of_label(first)})',
        "with graft(model, coders(layers)):",
        "    model(tokens)",
    ]


def _of_label(first: str) -> str:
    """The argument that chooses one configuration; nothing where there is one."""
    label = first.rpartition("/")[0]
    return f', pattern="{label}/*"' if label else ""


def _plain(rule: str) -> str:
    return rule.partition(",")[0]


def _code(text: str) -> str:
    """Text that a stranger may have written, as code in a table: no markup, one line."""
    return f"`{' '.join(text.replace('`', chr(39)).replace('|', '/').split())[:200]}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(row) + " |" for row in lines), ""]
