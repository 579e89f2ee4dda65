"""Gemma Scope: params.npz in a folder whose name says the layer, and Gemma Scope 2: params.safetensors, config.json.

Gemma Scope 2's cross-layer transcoders are a file layer_<i>.safetensors for each layer.
"""

import re
from collections.abc import Container, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import sae.formats.hooks as hooks
from sae.dictionary.spec import Saved, with_centre
from sae.formats.cross_layer import joined, of_later_layers
from sae.formats.files import read_npz, write_tensors
from sae.formats.format import About, Claim, Format, beside, by_itself, config_of, in_folder
from sae.formats.record import Contents, as_jumprelu, check_plain, record, transposed
from sae.storage.files import write_json

NPZ, WEIGHTS, CONFIG = "params.npz", "params.safetensors", "config.json"
_LAYER = re.compile(r"layer_(\d{1,4})")
_CROSS_LAYER = re.compile(r"(?:params_)?layer_(\d{1,4})\.safetensors")
_SITE = re.compile(r"[-_/](att|attn_out|mlp|mlp_out|transcoders?)(?:_all|_affine)?(?=/|$)")
_NORM = ".post_feedforward_layernorm"
_SITES = {"att": ".self_attn.o_proj.input", "mlp": _NORM, "tra": _NORM}


def _claim_first(file: PurePosixPath, names: Container[str]) -> Claim | None:
    return in_folder(file, NPZ) if file.name == NPZ else None


def _claim_second(file: PurePosixPath, names: Container[str]) -> Claim | None:
    if _CROSS_LAYER.fullmatch(file.name) and beside(file, "config.yaml") not in names:
        return by_itself(file)
    if file.name != WEIGHTS:
        return None
    return in_folder(file, *(name for name in (CONFIG, WEIGHTS) if name == WEIGHTS or beside(file, CONFIG) in names))


def _place(path: Path) -> str:
    """Patterns of folders and of the hub's repositories, from the first to the last."""
    return "/".join(path.absolute().parts[-8:]).lower()


def _from_place(path: Path) -> str:
    """The hookpoint by the names of folders: a block's output, if they name no other site."""
    found = _LAYER.findall(_place(path))
    named = _SITE.findall(_place(path))
    site = _SITES[named[-1][:3]] if named else ""
    return f"layers.{int(found[-1])}{site}" if found else "embed_tokens" if "embedding" in _place(path) else ""


def _is_transcoder(path: Path) -> bool:
    return any(name.startswith("transcoder") for name in _SITE.findall(_place(path)))


def hookpoint(path: Path) -> str:
    """The hookpoint that config.json names, else the folder."""
    if layer := _CROSS_LAYER.fullmatch(path.name):
        return f"layers.{int(layer[1])}{_NORM}"
    config = config_of(path, CONFIG)
    name = config.get("hf_hook_point_out") or config.get("hf_hook_point_in")
    return hooks.to_module(name, config.get("model_name")) or _from_place(path)


def read_first(path: Path) -> Saved:
    """A dictionary of Gemma Scope. Raises ValueError naming the file and the rule it breaks."""
    file = path / NPZ
    found = Contents(file, {re.sub("^w_", "W_", name): array for name, array in read_npz(file).items()})
    W_enc, b_enc, W_dec, b_dec, threshold = found.tensors("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    found.check_all_taken()
    if "embedding" in path.absolute().parts and W_enc.dim() == 2:  # trained on embeddings times sqrt(d)
        W_enc, W_dec = W_enc / len(W_enc) ** 0.5, W_dec * len(W_enc) ** 0.5
    tensors = {"encoder.weight": transposed(W_enc), "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec,
               "threshold": threshold}  # fmt: skip
    transcode = _is_transcoder(path)
    layer = _from_place(path).removesuffix(_NORM)
    return record(
        path, tensors, "jumprelu", centred=False, transcode=transcode, writes=_from_place(path),
        reads=f"{layer}.pre_feedforward_layernorm" if transcode else "",
    )  # fmt: skip


def read_second(path: Path) -> Saved:
    """A dictionary of Gemma Scope 2. Raises ValueError naming the file and the rule it breaks."""
    if layer := _CROSS_LAYER.fullmatch(path.name):
        return _read_cross_layer(path, int(layer[1]))
    file = path / WEIGHTS
    config = config_of(path, CONFIG)
    found = Contents.of(file)
    W_enc, b_enc, W_dec, b_dec, threshold = found.tensors("w_enc", "b_enc", "w_dec", "b_dec", "threshold")
    if W_dec.dim() == 3:
        raise ValueError(f"{file} must hold one dictionary, but w_dec writes {len(W_dec)} layers: a cross-layer one")
    tensors = {"encoder.weight": transposed(W_enc), "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec,
               "threshold": threshold}  # fmt: skip
    if "affine_skip_connection" in found:
        tensors["W_skip"] = transposed(found.tensors("affine_skip_connection")[0])
    found.check_all_taken()
    transcode = bool(config.get("hf_hook_point_out")) or _is_transcoder(path) or "W_skip" in tensors
    reads = hooks.to_module(config.get("hf_hook_point_in"), config.get("model_name"))
    return record(
        path, tensors, "jumprelu", centred=False, transcode=transcode, writes=hookpoint(path),
        reads=reads if transcode else "",
    )  # fmt: skip


def unused_width(path: Path, dims: Sequence[int]) -> int:
    """Width of what a layer's file of a cross-layer transcoder holds for the layers before it; 0 for other files."""
    layer = _CROSS_LAYER.fullmatch(path.name)
    return int(layer[1]) * dims[2] if layer and len(dims) == 3 else 0


def _read_cross_layer(file: Path, layer: int) -> Saved:
    """A layer of a cross-layer transcoder. Its file has decoders of all layers; those before its own are not used."""
    found = Contents.of(file)
    if "W_enc" in found:
        raise ValueError(
            f"{file} is one of circuit-tracer's, but no config.yaml beside it says what it reads and writes; add it"
        )
    W_enc, b_enc, W_dec, b_dec, threshold = found.tensors("w_enc", "b_enc", "w_dec", "b_dec", "threshold")
    if W_dec.dim() != 3 or W_dec.shape[1] <= layer:
        raise ValueError(f"{file}: w_dec must be (latents, layers, d) with layer {layer}, got {tuple(W_dec.shape)}")
    tensors = {"encoder.weight": transposed(W_enc), "encoder.bias": b_enc, "W_dec": W_dec[:, layer:], "b_dec": b_dec,
               "threshold": threshold}  # fmt: skip
    if "affine_skip_connection" in found:
        tensors["W_skip"] = transposed(found.tensors("affine_skip_connection")[0])
    found.check_all_taken()
    writes = of_later_layers(hookpoint(file), layer, W_dec.shape[1] - layer)
    return joined(file, tensors, reads=f"layers.{layer}.pre_feedforward_layernorm", writes=writes)


def write(folder: Path, saved: Saved, about: About) -> None:
    """Write one dictionary in Gemma Scope 2's format. Raises ValueError for what it cannot say."""
    check_plain(saved, "Gemma Scope 2")
    spec, tensors = with_centre(as_jumprelu(saved, "Gemma Scope 2"), False)
    weights = {"w_enc": tensors["encoder.weight"].T, "w_dec": tensors["W_dec"], "b_enc": tensors["encoder.bias"],
               "b_dec": tensors["b_dec"], "threshold": tensors["threshold"]}  # fmt: skip
    weights |= {"affine_skip_connection": tensors["W_skip"].T} if "W_skip" in tensors else {}
    writes = next(iter(spec.writes), about.hookpoint)
    reads = next(iter(spec.reads), f"{writes}.input" if spec.cfg.transcode else writes)
    config: dict[str, Any] = {"architecture": "jump_relu", "model_name": about.model, "hf_hook_point_in": _hf(reads)}
    if spec.cfg.transcode:
        config |= {"hf_hook_point_out": _hf(writes), "affine_connection": spec.cfg.skip_connection}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, config)


def _hf(hookpoint: str) -> str:
    return f"model.{hookpoint}" if hookpoint.endswith((".input", ".output")) else f"model.{hookpoint}.output"


GEMMA_SCOPE = Format("gemma-scope", "Gemma Scope", NPZ, (), _claim_first, _from_place, read_first)
GEMMA_SCOPE_2 = Format(
    "gemma-scope-2", "Gemma Scope 2", f"{WEIGHTS} with {CONFIG}", (CONFIG,), _claim_second, hookpoint, read_second,
    write,
)  # fmt: skip
