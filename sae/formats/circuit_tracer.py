"""circuit-tracer: a set of transcoders, config.yaml with layer_<i>.safetensors for every layer from 0 on.

Its JumpReLU has no ReLU, so thresholds are never negative here.
"""

import re
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

import sae.formats.hooks as hooks
from sae.dictionary.spec import Saved
from sae.formats.files import check_link, read_safetensors
from sae.formats.format import About, Claim, Format, beside
from sae.formats.record import as_jumprelu, check_plain, needed, record
from sae.storage.files import short

CONFIG = "config.yaml"
_FILE = re.compile(r"layer_(\d{1,4})\.safetensors")
_THRESHOLD = "activation_function.threshold"
_MAX_BYTES = 2**18


def _claim(file: PurePosixPath, names: Container[str]) -> Claim | None:
    if not _FILE.fullmatch(file.name) or beside(file, CONFIG) not in names:
        return None
    return Claim(file.as_posix(), (beside(file, CONFIG), file.as_posix()))


def _config(path: Path) -> dict[str, Any]:
    """The set's config.yaml. Raises ValueError, in one line, for any other file."""
    check_link(path)
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise ValueError(
            f"{path} must be a small YAML file, but there is none, or it is larger than {_MAX_BYTES} bytes"
        )
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be YAML, but it is not ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a YAML mapping, got {type(value).__name__}")
    return value


def _ends(path: Path, config: dict[str, Any]) -> tuple[str, str]:
    """The hookpoints that the transcoder of a layer reads and writes."""
    found = _FILE.fullmatch(path.name)
    if found is None:
        return "", ""
    block, model = f"blocks.{int(found[1])}", config.get("model_name")
    reads, writes = config.get("feature_input_hook"), config.get("feature_output_hook")
    names = [hooks.to_module(f"{block}.{name}", model) if isinstance(name, str) else "" for name in (reads, writes)]
    return names[0], names[1]


def hookpoint(path: Path) -> str:
    """What the transcoder of a layer writes."""
    try:
        return _ends(path, _config(path.with_name(CONFIG)))[1]
    except ValueError:
        return ""


def read(path: Path) -> Saved:
    """The transcoder of a layer. Raises ValueError naming the file and the rule it breaks."""
    config_path = path.with_name(CONFIG)
    config = _config(config_path)
    if config.get("model_kind", "transcoder_set") != "transcoder_set" or config.get("activation", "jumprelu") == "topk":
        what = "activation: topk" if config.get("activation") == "topk" else short(config.get("model_kind"))
        raise ValueError(f"{config_path}: {what} is not supported; known are transcoder sets with ReLU or JumpReLU")
    found: dict[str, Any] = dict(read_safetensors(path))
    W_enc, b_enc, W_dec, b_dec = needed(path, found, "W_enc", "b_enc", "W_dec", "b_dec")
    threshold = needed(path, found, _THRESHOLD)[0] if _THRESHOLD in found else torch.zeros_like(b_enc)
    if bool((threshold < 0).any()):
        raise ValueError(f"{path}: thresholds must be 0 or more, as activations here are not negative, got less")
    tensors = {"encoder.weight": W_enc, "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
    if "W_skip" in found:
        (tensors["W_skip"],) = needed(path, found, "W_skip")
    reads, writes = _ends(path, config)
    return record(path, tensors, "jumprelu", centred=False, transcode=True, reads=reads, writes=writes)


def write(folder: Path, saved: Saved, about: About) -> None:
    """Write the transcoder of one layer into the set's folder. Raises ValueError for what a set cannot say."""
    check_plain(saved, "circuit-tracer")
    spec = saved.spec
    place = next(iter(spec.writes), about.hookpoint)
    block = hooks.block_of(place)
    if not spec.cfg.transcode or spec.centred or spec.d_in != spec.d_out or block is None:
        raise ValueError(
            "circuit-tracer has transcoders of a layer, of one width and without b_dec subtracted, got "
            f"{'a transcoder' if spec.cfg.transcode else 'an autoencoder'} of {place or 'no known layer'} with widths "
            f"{spec.d_in} and {spec.d_out}"
        )
    tensors = as_jumprelu(saved, "circuit-tracer").tensors
    weights = {"W_enc": tensors["encoder.weight"], "b_enc": tensors["encoder.bias"], "W_dec": tensors["W_dec"],
               "b_dec": tensors["b_dec"], _THRESHOLD: tensors["threshold"].clamp_min(0)}  # fmt: skip
    weights |= {"W_skip": tensors["W_skip"]} if "W_skip" in tensors else {}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in weights.items()}, folder / f"layer_{block}.safetensors"
    )


def finish(folder: Path, hookpoints: list[str], about: About) -> None:
    """Write config.yaml. Raises ValueError unless every layer from 0 on is there, once."""
    blocks = sorted(block for name in hookpoints if (block := hooks.block_of(name)) is not None)
    if blocks != list(range(len(hookpoints))):
        raise ValueError(
            f"circuit-tracer needs a transcoder of every layer from 0 on, got layers {short(blocks)}; train the others"
        )
    config = {
        "model_name": about.model or "unknown",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        "scan": about.model.rpartition("/")[2] or "transcoders",
    }
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))


CIRCUIT_TRACER = Format(
    "circuit-tracer", "circuit-tracer", f"{CONFIG} with layer_<i>.safetensors", (CONFIG,), _claim, hookpoint, read,
    write, lambda hookpoint: ".", finish,
)  # fmt: skip
