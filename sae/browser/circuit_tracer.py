"""circuit-tracer's `features/`: an index, and a file for each layer with the records of its latents.

A record is its length in 4 bytes, little-endian, then compressed JSON. For each layer `index.json.gz` has the file's
name and the offsets of its records, one more than there are latents.
"""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.storage.files import write_atomically

from .findings import Context
from .notes import Notes
from .payload import short
from .store import Index, Latent, Place


def write(index: Index, folder: Path, notes: Notes, latents: Sequence[int]) -> None:
    """Write features/ of all places. Latents that are not chosen have empty records.

    Raises ValueError, before anything is written, for two places at one layer.
    """
    places = _by_layer(index)
    features = folder / "features"
    features.mkdir()
    entries: dict[str, Any] = {}
    for layer, place in places.items():
        chosen = set(latents) if latents else None
        offsets, content = [0], bytearray()
        for latent in place:
            record = b"" if chosen is not None and latent.index not in chosen else _record(latent, layer)
            content += len(record).to_bytes(4, "little") + record
            offsets.append(len(content))
        write_atomically(features / f"layer_{layer}.bin", bytes(content))
        entries[layer] = {"filename": f"layer_{layer}.bin", "offsets": offsets}
    write_atomically(features / "index.json.gz", gzip.compress(json.dumps(entries).encode(), 6, mtime=0))


def _by_layer(index: Index) -> dict[str, Place]:
    """Places by the numbers of their layers, or their own where they have none."""
    found: dict[str, Place] = {}
    for number, place in enumerate(index.places.values()):
        if place.header.is_crosscoder:
            raise ValueError(
                f"circuit-tracer shows transcoders by layer, got the crosscoder {place.name}; leave it out with "
                "--hookpoints"
            )
        digits = re.search(r"\d+", place.hookpoint)
        other = found.setdefault(digits[0] if digits else str(number), place)
        if other is not place:
            raise ValueError(
                f"circuit-tracer shows one dictionary of a layer, got {other.name} and {place.name}; choose with "
                "--hookpoints"
            )
    return found


def _record(latent: Latent, layer: str) -> bytes:
    groups = {"Top activations": latent.top_contexts(20)}
    groups |= {f"Subsample interval {at}": group for at, group in enumerate(latent.fifths())}
    seen: set[int] = set()
    value = {
        "transcoder_id": layer, "index": latent.index,
        "examples_quantiles": [
            {"quantile_name": name, "examples": [_example(context, seen) for context in group]}
            for name, group in groups.items()
        ],
        "top_logits": [each.token for each in latent.promotes],
        "bottom_logits": [each.token for each in latent.suppresses],
        "act_min": 0.0, "act_max": short(latent.max), "quantile_values": [short(float(edge)) for edge in latent.edges],
        "histogram": latent.histogram.tolist(), "activation_frequency": short(latent.density),
    }  # fmt: skip
    return gzip.compress(json.dumps(value).encode(), 6, mtime=0)


def _example(context: Context, seen: set[int]) -> dict[str, Any]:
    again = context.position in seen
    seen.add(context.position)
    return {
        "tokens": context.tokens, "tokens_acts_list": [short(value) for value in context.activations],
        "train_token_ind": context.peak, "is_repeated_datapoint": again,
    }  # fmt: skip
