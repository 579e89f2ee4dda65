"""circuit-tracer: transcoders of every layer from 0 on, config.yaml with a file for each.

A set has layer_<i>.safetensors. A cross-layer transcoder has W_enc_<i>.safetensors and W_dec_<i>.safetensors, with
decoders for this layer and each later one. Its JumpReLU has no ReLU, so thresholds are never negative here.
"""

import re
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import torch
import yaml
from safetensors import safe_open
from torch import Tensor

import sae.formats.hooks as hooks
from sae.dictionary.spec import Saved
from sae.formats.cross_layer import apart, joined, of_later_layers
from sae.formats.files import check_link, shapes_in, write_tensors
from sae.formats.format import About, Claim, Format, beside
from sae.formats.record import Contents, as_jumprelu, check_plain, record
from sae.storage.files import is_inside, short, write_atomically

CONFIG = "config.yaml"
_FILE = re.compile(r"(?:layer|W_enc)_(\d{1,4})\.safetensors")
_THRESHOLD = "activation_function.threshold"
_MAX_BYTES = 2**18
_RULES = ("relu", "jumprelu", "jump_relu", None)
"""What config.yaml may call the activation function; its files say the rest."""
_HUB = "hf://"
_ENDS = ("feature_input_hook", "feature_output_hook")


def _claim(file: PurePosixPath, names: Container[str]) -> Claim | None:
    if not _FILE.fullmatch(file.name) or beside(file, CONFIG) not in names:
        return None
    decoders = (beside(file, file.name.replace("enc", "dec")),) if file.name.startswith("W_enc") else ()
    return Claim(file.as_posix(), (beside(file, CONFIG), *decoders, file.as_posix()))


class _WithoutMerges(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's safe loader without the key `<<`: merges of merges grow a file of 1 kB beyond any memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave `<<` as a key, for which there is no constructor."""


def settings(path: Path) -> dict[str, Any]:
    """The set's config.yaml. Raises ValueError, in one line, for any other file."""
    check_link(path)
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise ValueError(
            f"{path} must be a small YAML file, but there is none, or it is larger than {_MAX_BYTES} bytes"
        )
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_WithoutMerges)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be YAML, but it is not{_where(error)}; is it complete?") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a YAML mapping, got {type(value).__name__}")
    return value


def _where(error: Exception) -> str:
    """The place in a YAML file that an error names; empty if it names none."""
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f" (at line {mark.line + 1}, column {mark.column + 1})"


def _ends(path: Path, config: dict[str, Any]) -> tuple[str, str]:
    """The hookpoints that the transcoder of a layer reads and writes."""
    found = _FILE.fullmatch(path.name)
    if found is None:
        return "", ""
    block, model = f"blocks.{int(found[1])}", config.get("model_name")
    reads, writes = (config.get(name) for name in _ENDS)
    names = [hooks.to_module(f"{block}.{name}", model) if isinstance(name, str) else "" for name in (reads, writes)]
    return names[0], names[1]


class Elsewhere(NamedTuple):
    """A file of another repository of the hub that a set names."""

    repository: str
    revision: str | None
    file: str


def elsewhere(config: Path) -> list[Elsewhere]:
    """The files that a set of transcoders has in other repositories. Raises ValueError for a name that is none."""
    named = settings(config).get("transcoders")
    links = [link for link in named if isinstance(link, str)] if isinstance(named, list) else []
    return [_elsewhere(config, link) for link in links if link.startswith(_HUB)]


def _elsewhere(config: Path, link: str) -> Elsewhere:
    parts = urlsplit(link)
    name, _, file = parts.path.removeprefix("/").partition("/")
    if not (parts.netloc and name and is_inside(file)):
        raise ValueError(f"{config}: transcoders must be {_HUB}OWNER/NAME/FILE, got {short(link)}")
    return Elsewhere(f"{parts.netloc}/{name}", parse_qs(parts.query).get("revision", [None])[0], file)


def hookpoint(path: Path) -> str:
    """What the transcoder of a layer writes."""
    try:
        return _ends(path, settings(path.with_name(CONFIG)))[1]
    except ValueError:
        return ""


def read(path: Path) -> Saved:
    """The transcoder of a layer. Raises ValueError naming the file and the rule it breaks."""
    config_path = path.with_name(CONFIG)
    config = settings(config_path)
    is_cross_layer = path.name.startswith("W_enc")
    kind = "cross_layer_transcoder" if is_cross_layer else "transcoder_set"
    rule = config.get("activation", "jumprelu")
    if config.get("model_kind", kind) != kind or rule not in _RULES:
        what = f"activation: {short(rule)}" if rule not in _RULES else short(config.get("model_kind"))
        raise ValueError(
            f"{config_path}: {what} is not supported for {path.name}; known are transcoder_set with "
            "layer_<i>.safetensors and cross_layer_transcoder with W_enc_<i>.safetensors, with ReLU or JumpReLU"
        )
    reads, writes = _ends(path, config)
    if is_cross_layer:
        return _read_cross_layer(path, reads, writes)
    found = Contents.of(path)
    W_enc, b_enc, W_dec, b_dec = found.tensors("W_enc", "b_enc", "W_dec", "b_dec")
    threshold = _threshold(found, _THRESHOLD, b_enc)
    tensors = {"encoder.weight": W_enc, "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
    if "W_skip" in found:
        (tensors["W_skip"],) = found.tensors("W_skip")
    found.check_all_taken()
    return record(path, tensors, "jumprelu", centred=False, transcode=True, reads=reads, writes=writes)


def _threshold(found: Contents, name: str, b_enc: Tensor) -> Tensor:
    """Thresholds of the latents: 0 for a plain ReLU, which has none in its file."""
    threshold = found.tensors(name)[0] if name in found else torch.zeros_like(b_enc)
    if bool((threshold < 0).any()):
        raise ValueError(f"{found.path}: thresholds must be 0 or more, as activations here are not negative, got less")
    return threshold


def _decoders(path: Path) -> Path:
    """The file of the decoders that belong to one of encoders."""
    return path.with_name(path.name.replace("enc", "dec"))


def _read_cross_layer(path: Path, reads: str, writes: str) -> Saved:
    """The layer of a cross-layer transcoder whose encoder is in `path`."""
    if not (reads and writes):
        raise ValueError(
            f"{path.with_name(CONFIG)} must name {' and '.join(_ENDS)}, the places in a block that a cross-layer "
            "transcoder reads and writes; add them"
        )
    layer = _layer(path)
    found, decoders = Contents.of(path), Contents.of(_decoders(path))
    W_enc, b_enc, b_dec = found.tensors(*(f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec")))
    (W_dec,) = decoders.tensors(f"W_dec_{layer}")
    if W_dec.dim() != 3 or not W_dec.shape[1]:
        raise ValueError(f"{_decoders(path)}: W_dec_{layer} must be (latents, layers, d), got {tuple(W_dec.shape)}")
    tensors = {"encoder.weight": W_enc, "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec,
               "threshold": _threshold(found, f"threshold_{layer}", b_enc)}  # fmt: skip
    found.check_all_taken()
    decoders.check_all_taken()
    return joined(path, tensors, reads=reads, writes=of_later_layers(writes, layer, W_dec.shape[1]))


def _layer(path: Path) -> int:
    found = _FILE.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def write(folder: Path, saved: Saved, about: About) -> None:
    """Write the transcoder of one layer into the set's folder. Raises ValueError for what a set cannot say.

    The names of its two places go into the file's header, for `finish`.
    """
    check_plain(saved, "circuit-tracer", cross_layer=True)
    spec = saved.spec
    place = next(iter(spec.writes), about.hookpoint)
    block = hooks.block_of(place)
    if not spec.cfg.transcode or spec.centred or spec.d_in != spec.own_width or block is None:
        raise ValueError(
            "circuit-tracer has transcoders of a layer, of one width and without b_dec subtracted, got "
            f"{'a transcoder' if spec.cfg.transcode else 'an autoencoder'} of {place or 'no known layer'} with widths "
            f"{spec.d_in} and {spec.d_out}"
        )
    ends = _named(next(iter(spec.reads), f"{place}.input"), place, about.model)
    tensors = as_jumprelu(saved, "circuit-tracer").tensors
    weights = {"W_enc": tensors["encoder.weight"], "b_enc": tensors["encoder.bias"], "W_dec": tensors["W_dec"],
               "b_dec": tensors["b_dec"], _THRESHOLD: tensors["threshold"].clamp_min(0)}  # fmt: skip
    weights |= {"W_skip": tensors["W_skip"]} if "W_skip" in tensors else {}
    folder.mkdir(parents=True, exist_ok=True)
    if not spec.cfg.cross_layer:
        return write_tensors(folder / f"layer_{block}.safetensors", weights, ends)
    W_dec, b_dec = apart(saved)
    weights |= {"b_dec": b_dec, "threshold": weights.pop(_THRESHOLD)}
    del weights["W_dec"]
    _check_later(spec.writes, block)
    one_type = {name: t.to(W_dec.dtype) for name, t in weights.items()}
    write_tensors(folder / f"W_enc_{block}.safetensors", {f"{name}_{block}": t for name, t in one_type.items()}, ends)
    write_tensors(folder / f"W_dec_{block}.safetensors", {f"W_dec_{block}": W_dec}, ends)


def _named(reads: str, writes: str, model: str) -> dict[str, str]:
    """The library's names of both places, without their block. Raises ValueError for a place that has none."""
    names = {}
    for end, place in zip(_ENDS, (reads, writes), strict=True):
        names[end] = hooks.in_block(place, model)
        if not names[end] or hooks.block_of(place) != hooks.block_of(writes):
            raise ValueError(
                f"circuit-tracer names places of one block as TransformerLens does, and has none for {place}; "
                "train transcoders of each MLP, as --hookpoints 'layers.*.mlp' --transcode"
            )
    return names


def _check_later(writes: tuple[str, ...], block: int) -> None:
    """Raise ValueError unless a layer writes its own block and each one after it."""
    if [hooks.block_of(name) for name in writes] != list(range(block, block + len(writes))):
        raise ValueError(
            f"circuit-tracer's cross-layer transcoders write every layer from their own on, got {', '.join(writes)}"
        )


def finish(folder: Path, hookpoints: list[str], about: About) -> None:
    """Write config.yaml. Raises ValueError unless every layer from 0 on is there, once, and they belong together."""
    blocks = sorted(block for name in hookpoints if (block := hooks.block_of(name)) is not None)
    if blocks != list(range(len(hookpoints))):
        raise ValueError(
            f"circuit-tracer needs a transcoder of every layer from 0 on, got layers {short(blocks)}; train the others"
        )
    is_cross_layer = (folder / "W_enc_0.safetensors").exists()
    paths = [folder / f"{'W_enc' if is_cross_layer else 'layer'}_{block}.safetensors" for block in blocks]
    config = {
        "model_name": about.model or "unknown",
        "model_kind": "cross_layer_transcoder" if is_cross_layer else "transcoder_set",
        **_ends_of_all(paths),
        "scan": about.model.rpartition("/")[2] or "transcoders",
    }
    write_atomically(folder / CONFIG, yaml.safe_dump(config, sort_keys=False).encode())


def _ends_of_all(paths: list[Path]) -> dict[str, str]:
    """Both places by the headers of all files. Raises ValueError if they differ, or shapes do."""
    ends, shapes = [], []
    for path in paths:
        with safe_open(path, framework="pt") as file:
            ends.append({name: file.metadata()[name] for name in _ENDS})
        shapes += [shape.dims for name, shape in shapes_in(path).items() if name.startswith("W_enc")]
        if path.name.startswith("W_enc"):
            ((_, layers, _),) = [shape.dims for shape in shapes_in(_decoders(path)).values()]
            if layers != len(paths) - _layer(path):
                raise ValueError(
                    f"circuit-tracer needs decoders for every later layer, {len(paths) - _layer(path)} of layer "
                    f"{_layer(path)}, got {layers}; convert all layers of one cross-layer transcoder"
                )
    if any(each != ends[0] for each in ends) or len(set(shapes)) > 1:
        raise ValueError(
            f"circuit-tracer needs transcoders of one kind and size in all layers, got {short(ends)} and shapes "
            f"{short(sorted(set(shapes)))}; choose with --hookpoints"
        )
    return ends[0]


CIRCUIT_TRACER = Format(
    "circuit-tracer", "circuit-tracer", f"{CONFIG} with layer_<i>.safetensors, or W_enc_<i> and W_dec_<i>", (CONFIG,),
    _claim, hookpoint, read, write, lambda hookpoint: ".", finish,
)  # fmt: skip
