"""Neuronpedia's import folder: exports/<model>/<layer>-<set>/ with features, activations and explanations.

Source: the repository's utils/neuronpedia-utils, August 2026.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sae.storage.files import write_atomically

from .findings import Context
from .notes import Notes
from .payload import short
from .store import Index, Latent, Place

BATCH = 256
"""Latents in a file."""


def write(index: Index, folder: Path, notes: Notes, latents: Sequence[int]) -> None:
    """Write the folders of all places. Texts in them are as they are: JSON."""
    model = plain(Path(str(index.header.about.get("model", "model"))).stem)
    sources = [source_of(place) for place in index.places.values()]
    for number, (place, source) in enumerate(zip(index.places.values(), sources, strict=True)):
        source = source if sources.count(source) == 1 else f"{source}-{number}"
        root = folder / "exports" / model / source
        for part in ("features", "activations", "explanations"):
            (root / part).mkdir(parents=True)
        _write_about(root, index, place, model, source)
        chosen = [latent for latent in (latents or range(place.num_latents)) if latent < place.num_latents]
        written = notes.of(place.name)
        for batch, start in enumerate(range(0, len(chosen), BATCH)):
            some = [place[latent] for latent in chosen[start : start + BATCH]]
            _write_lines(root / f"features/batch-{batch}.jsonl.gz", (_feature(each, model, source) for each in some))
            activations = (line for each in some for line in _activations(each, model, source))
            _write_lines(root / f"activations/batch-{batch}.jsonl.gz", activations)
            told = (_explanation(each, written[str(each.index)]["explanation"], model, source) for each in some
                    if written.get(str(each.index), {}).get("explanation"))  # fmt: skip
            _write_lines(root / f"explanations/batch-{batch}.jsonl.gz", told)


def plain(name: str) -> str:
    """A name that is fit for a folder."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).strip(".-")[:80] or "model"


def source_of(place: Place) -> str:
    """`<layer>-<set>`: the block's number, the configuration, and what is left of the hookpoint's name."""
    group, _, hookpoint = place.name.rpartition("/")
    found = re.search(r"\d+", hookpoint)
    layer = found[0] if found else "0"
    rest = plain(re.sub(r"^[^\d]*\d+\.?", "", hookpoint))
    parts = [*([plain(group)] if group else []), rest if rest != "model" else "res", str(place.num_latents)]
    return f"{layer}-sae-{'-'.join(parts)}".lower()


def _write_about(root: Path, index: Index, place: Place, model: str, source: str) -> None:
    now = datetime.now(UTC).isoformat()
    release, source_set = f"{model}-sae", source.partition("-")[2]
    layers = sum(other.header.path == "direct" for other in index.places.values())
    objects: dict[str, dict[str, Any]] = {
        "release": {"name": release, "description": "made with sae browse", "createdAt": now},
        "model": {"id": model, "displayName": model, "layers": layers, "createdAt": now},
        "sourceset": {"modelId": model, "name": source_set, "releaseName": release, "createdAt": now},
        "source": {"modelId": model, "id": source, "setName": source_set, "dataset": index.header.about.get("dataset"),
                   "hookName": place.hookpoint, "num_prompts": index.header.sequences,
                   "num_tokens_in_prompt": index.ctx_len, "createdAt": now},
    }  # fmt: skip
    for name, value in objects.items():
        write_atomically(root / f"{name}.jsonl", (json.dumps(value) + "\n").encode())


def _feature(latent: Latent, model: str, source: str) -> dict[str, Any]:
    width = latent.max / len(latent.histogram)
    neighbours = latent.neighbours(25, across=False)
    logits, edges = latent.logit_histogram
    return {
        "modelId": model, "layer": source, "index": str(latent.index), "maxActApprox": short(latent.max),
        "frac_nonzero": short(latent.density),
        "pos_str": [each.token for each in latent.promotes], "pos_values": [each.logit for each in latent.promotes],
        "neg_str": [each.token for each in latent.suppresses],
        "neg_values": [each.logit for each in latent.suppresses],
        "freq_hist_data_bar_heights": latent.histogram.tolist(),
        "freq_hist_data_bar_values": [short((at + 0.5) * width) for at in range(len(latent.histogram))],
        "logits_hist_data_bar_heights": logits.tolist() if logits.any() else [],
        "logits_hist_data_bar_values": [short(float(v)) for v in (edges[1:] + edges[:-1]) / 2] if logits.any() else [],
        "topkCosSimIndices": [each.latent for each in neighbours],
        "topkCosSimValues": [short(each.cosine) for each in neighbours],
        # Of several hookpoints side by side it would be of another width than the model.
        "vector": [] if latent.place.header.ends else [short(float(v)) for v in latent.place.direction(latent.index)],
        "hookName": latent.place.hookpoint,
    }  # fmt: skip


def _activations(latent: Latent, model: str, source: str) -> Iterable[dict[str, Any]]:
    """The strongest contexts, then those of each fifth with the bounds of their activations."""
    groups = [(latent.top_contexts(20, before=64, after=64), -1.0, -1.0, 0.0)]
    edges = latent.edges.tolist()
    share = 1 / (len(edges) - 1)
    groups += [(group, low, high, share) for group, high, low in zip(latent.fifths(before=64, after=64), edges,
                                                                      edges[1:], strict=False)]  # fmt: skip
    for number, (group, low, high, contains) in enumerate(groups):
        for context in group:
            yield _activation(latent, context, (low, high, contains), f"{model}/{source}/{latent.index}/{number}")


def _activation(latent: Latent, context: Context, bounds: tuple[float, float, float], where: str) -> dict[str, Any]:
    model, source, *_ = where.split("/")
    low, high, contains = bounds
    values = np.asarray(context.activations)
    return {
        "id": hashlib.sha256(f"{where}/{context.position}".encode()).hexdigest()[:25], "tokens": context.tokens,
        "values": [short(float(value)) for value in values], "maxValue": short(float(values.max())),
        "maxValueTokenIndex": int(values.argmax()), "minValue": short(float(values.min())), "binMin": low,
        "binMax": high, "binContains": contains, "modelId": model, "layer": source, "index": str(latent.index),
    }  # fmt: skip


def _explanation(latent: Latent, text: str, model: str, source: str) -> dict[str, Any]:
    return {
        "modelId": model,
        "layer": source,
        "index": str(latent.index),
        "description": text,
        "typeName": "sae-browse",
    }


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    content = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomically(path, gzip.compress(content.encode(), 6, mtime=0))
