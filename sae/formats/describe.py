"""Descriptions of dictionaries, by their configurations and the headers of their files."""

import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from sae.formats.circuit_tracer import settings
from sae.formats.files import Shape, shapes_of
from sae.formats.format import StoredDictionary
from sae.formats.gemma_scope import unused_width
from sae.formats.overcomplete import DICTIONARY, OVERCOMPLETE, k_in
from sae.formats.qwen_scope import QWEN_SCOPE, k_of
from sae.storage.files import read_json, short

_BIASES = ("encoder.bias", "b_enc", "b_E", "latent_bias", "encoder_linear.bias", "b_mag", "mag_bias")
_ENCODERS = ("encoder.weight", "W_enc", "w_enc", "W_E", "encoder_linear.weight",
             "encoder.final_block.0.weight", DICTIONARY)  # fmt: skip
_DECODERS = (DICTIONARY, "W_dec", "w_dec", "W_D", "decoder.weight", "decoder_linear.weight",
             "decoder.linear.weight")  # fmt: skip
_MODELS = ("model_name", "lm_name", "model")
_RULES = ("activation", "architecture", "dict_class", "act_fn")
_LAYER = re.compile(r"_\d+$")
"""What ends the names of tensors of a layer of circuit-tracer's cross-layer transcoders."""
_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


class Description(NamedTuple):
    """One line of `sae info`."""

    hookpoint: str
    format: str
    """The format that is loaded, and those in which it stands there too."""
    d_in: int
    num_latents: int
    d_out: int
    rule: str
    """How latents are selected, as the configuration says it, and k."""
    dtype: str
    model: str
    num_bytes: int
    """Size of all files."""


def size_of(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


def describe(
    name: str,
    stored: StoredDictionary,
    *,
    shapes_of: Callable[[Path], dict[str, Shape]] = shapes_of,
    size_of: Callable[[Path], int] = size_of,
) -> Description:
    """The dictionary at a place. Raises ValueError naming the file and the rule it breaks; reads no weights."""
    paths = [stored.root / file for file in stored.files]
    every = [path for path in paths if path.suffix not in (".json", ".yaml")]
    weights = every[-1]
    shapes = {_LAYER.sub("", name): shape for path in every for name, shape in shapes_of(path).items()}
    latents = shapes[DICTIONARY].dims[0] if DICTIONARY in shapes else prod(_first(weights, shapes, _BIASES).dims)
    encoder, decoder = _first(weights, shapes, _ENCODERS), _first(weights, shapes, _DECODERS)
    config = _flat(next((read_json(path) for path in paths if path.suffix == ".json" and path.exists()), {}))
    return Description(
        hookpoint=name,
        format=", ".join([stored.format.name, *stored.also]),
        d_in=prod(encoder.dims) // max(latents, 1),
        num_latents=latents,
        d_out=prod(decoder.dims) // max(latents, 1) - unused_width(stored.path, decoder.dims),
        rule=_rule(stored, config, shapes),
        dtype=_TYPES.get(encoder.dtype, encoder.dtype),
        model=short(model_of(stored)).strip("'"),
        num_bytes=sum(map(size_of, paths)),
    )


def model_of(stored: StoredDictionary) -> str:
    """The model that a configuration names; empty if none does. Raises ValueError for a damaged one."""
    for path in (stored.root / file for file in stored.files):
        if path.suffix not in (".json", ".yaml") or not path.is_file():
            continue
        config = _flat(settings(path) if path.suffix == ".yaml" else read_json(path))
        named = [config[name] for name in _MODELS if isinstance(config.get(name), str)]
        if named:
            return str(named[0])
    return ""


def _first(path: Path, shapes: dict[str, Shape], names: tuple[str, ...]) -> Shape:
    found = next((shapes[name] for name in names if name in shapes), None)
    if found is None:
        raise ValueError(f"{path} must hold one of {', '.join(names)}, but holds {short(sorted(shapes)[:8])}")
    return found


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration, of its parts too."""
    parts = [
        part for name in ("trainer", "metadata", "activation_fn_kwargs") if isinstance(part := config.get(name), dict)
    ]
    return {name: value for part in (*parts, config) for name, value in part.items()}


def _rule(stored: StoredDictionary, config: dict[str, Any], shapes: dict[str, Shape]) -> str:
    by_tensors = "jumprelu" if any("threshold" in name for name in shapes) else "topk" if "k" in config else ""
    rule = next((config[name] for name in _RULES if isinstance(config.get(name), str)), by_tensors)
    rule = "topk" if config.get("activation_fn_str") == "topk" else rule
    k = config.get("k", config.get("top_k"))
    if stored.format is QWEN_SCOPE:
        rule, k = "topk", k_of(stored.path)
    if stored.format is OVERCOMPLETE and not rule:
        k = k_in(stored.path)
        rule = "relu" if k is None else "topk"
    kinds = [name for name in ("transcode", "skip_connection", "tie_decoders", "signed") if config.get(name) is True]
    kinds += ["tie_decoders target"] * (config.get("tie_decoders") == "target")
    if isinstance(fewer := config.get("inference_l0"), int | float):
        kinds.insert(0, f"inference_l0 {fewer:g}")
    words = [short(rule).strip("'"), *([f"k {k}"] if type(k) is int and "jump" not in str(rule) else []), *kinds]
    return ", ".join(words)
