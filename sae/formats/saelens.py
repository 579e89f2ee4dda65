"""SAELens: a folder with cfg.json and sae_weights.safetensors, of version 6 and of the flat files before it."""

from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

import sae.formats.hooks as hooks
from sae.dictionary.spec import Saved
from sae.formats.files import check_link, write_tensors
from sae.formats.format import About, Claim, Format, beside, config_of, in_folder, quietly
from sae.formats.record import (
    Contents,
    as_jumprelu,
    check_plain,
    gate_as_threshold,
    has_unit_rows,
    record,
    transposed,
    with_both_signs,
    with_norms_folded,
)
from sae.storage.files import read_json, short, write_json

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_VERSION = "6.54.12"
"""The version whose files are written."""
_RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
_ARCHITECTURES = ("standard", "gated", "topk", "abstopk", "jumprelu", "transcoder", "skip_transcoder",
                  "jumprelu_transcoder", "jumprelu_skip_transcoder")  # fmt: skip
_OF_A_TOKEN = {"temporal": "looks at other tokens too", "matching_pursuit": "selects latents one after the other"}
"""Architectures that are no rule on the pre-activations of one token."""
_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def _claim(file: PurePosixPath, names: Container[str]) -> Claim | None:
    is_ours = file.name == WEIGHTS and (beside(file, CFG) in names or beside(file, "config.json") not in names)
    return in_folder(file, CFG, WEIGHTS) if is_ours else None


def _knows(folder: Path) -> Claim | None:
    """Its cfg.json has the name of EleutherAI's, which has no architecture."""
    return Claim(".", (CFG, WEIGHTS)) if "architecture" in quietly(folder / CFG) else None


def hookpoint(path: Path) -> str:
    """The hookpoint that cfg.json names."""
    about = _about(config_of(path, CFG))
    return _module(about, "hookpoint_out", "hook_name_out") or _module(about, "hookpoint", "hook_name")


def _about(cfg: dict[str, Any]) -> dict[str, Any]:
    metadata = cfg.get("metadata")
    cfg = {_RENAMED.get(name, name): value for name, value in cfg.items()}
    return cfg | (metadata if isinstance(metadata, dict) else {})


def _module(about: dict[str, Any], own: str, theirs: str) -> str:
    name = about.get(own)
    return name if isinstance(name, str) else hooks.to_module(about.get(theirs), about.get("model_name"))


def read(path: Path) -> Saved:
    """The dictionary in a folder. Raises ValueError naming the file and the rule it breaks."""
    cfg_path, weights = path / CFG, path / WEIGHTS
    check_link(cfg_path)
    cfg = read_json(cfg_path)
    about = _about(cfg)
    architecture, k = _architecture(cfg_path, about)
    tensors = Contents.of(weights)
    _check_scale(tensors)
    norm = _norm(cfg_path, about)
    transcode = "transcoder" in architecture
    W_enc, W_dec, b_dec = tensors.tensors("W_enc", "W_dec", "b_dec")
    found = {"encoder.weight": transposed(W_enc), "W_dec": W_dec, "b_dec": b_dec}
    found |= _encoder(architecture, tensors, found["encoder.weight"])
    if about.get("rescale_acts_by_decoder_norm") is True and k is not None:
        found = with_norms_folded(found)
    if architecture == "abstopk":
        found = with_both_signs(found)
    if "skip" in architecture:
        (found["W_skip"],) = tensors.tensors("W_skip")
    tensors.check_all_taken()
    given = about.get("apply_b_dec_to_input", not transcode)
    if type(given) is not bool:
        raise ValueError(f"{cfg_path}: apply_b_dec_to_input must be true or false, got {short(given)}")
    return record(
        path, found, "jumprelu" if k is None else "topk", k=k, centred=given and not transcode,
        transcode=transcode, layer_norm=norm == "layer_norm",
        writes=_module(about, "hookpoint_out", "hook_name_out") or _module(about, "hookpoint", "hook_name"),
        reads=_module(about, "hookpoint", "hook_name") if transcode else "",
    )  # fmt: skip


def _architecture(path: Path, about: dict[str, Any]) -> tuple[str, Any]:
    """The architecture, and k or None."""
    architecture, k = about.get("architecture", "standard"), about.get("k")
    options = about.get("activation_fn_kwargs")
    if about.get("activation_fn") == "topk" and isinstance(options, dict) and options.get("k") is not None:
        architecture, k = "topk", options["k"]
    if architecture not in _ARCHITECTURES:
        why = f", which {_OF_A_TOKEN[architecture]}" if architecture in list(_OF_A_TOKEN) else ""
        raise ValueError(
            f"{path}: architecture must be one of {', '.join(_ARCHITECTURES)}, got {short(architecture)}{why}"
        )
    if architecture not in ("topk", "abstopk"):
        return architecture, None
    if type(k) is float and k.is_integer():
        k = int(k)
    if type(k) is not int:
        raise ValueError(f"{path}: k must be int, got {short(k)}")
    return architecture, k


def _norm(path: Path, about: dict[str, Any]) -> str:
    """How activations are normalised at inference: none or layer_norm."""
    given = about.get("normalize_activations") or "none"
    if about.get("reshape_activations", "none") not in ("none", "hook_z"):
        raise ValueError(f"{path}: reshape_activations={short(about['reshape_activations'])} is not known")
    # A scale that training learned is folded into the weights when they are saved.
    given = "none" if given in ("expected_average_only_in", True) else given
    if given not in ("none", "layer_norm"):
        raise ValueError(
            f"{path}: normalize_activations must be none, layer_norm or expected_average_only_in, got {short(given)}; "
            "no dictionary here scales tokens by their lengths, or mixes their entries"
        )
    return str(given)


def _check_scale(tensors: Contents) -> None:
    scale = tensors.pop("scaling_factor", None)
    if scale is not None and not bool((scale.float() == 1).all()):
        raise ValueError(f"{tensors.path}: scaling_factor must be 1 everywhere, got others; fold it with SAELens first")


def _encoder(architecture: str, tensors: Contents, W_enc: Tensor) -> dict[str, Tensor]:
    """Bias and threshold of the encoder, and its weight where a gate scales it."""
    if architecture == "gated":
        r_mag, b_gate, b_mag = tensors.tensors("r_mag", "b_gate", "b_mag")
        shapes = {tuple(t.shape) for t in (r_mag, b_gate, b_mag)}
        if shapes != {(len(W_enc),)}:
            raise ValueError(f"{tensors.path}: r_mag, b_gate and b_mag must be ({len(W_enc)},), got {short(shapes)}")
        return gate_as_threshold(W_enc, r_mag, b_gate, b_mag)
    (b_enc,) = tensors.tensors("b_enc")
    if architecture in ("topk", "abstopk"):
        return {"encoder.bias": b_enc}
    if "jumprelu" in architecture:
        return {"encoder.bias": b_enc, "threshold": tensors.tensors("threshold")[0]}
    return {"encoder.bias": b_enc, "threshold": torch.zeros_like(b_enc)}


def write(folder: Path, saved: Saved, about: About) -> None:
    """Write one dictionary. BatchTopK becomes JumpReLU, as in SAELens itself. Raises ValueError for other kinds."""
    check_plain(saved, "SAELens", norm=not saved.spec.cfg.transcode)
    if saved.spec.selection != "topk" or saved.spec.cfg.transcode:
        saved = as_jumprelu(saved, "SAELens")
    spec, tensors = saved
    if spec.cfg.transcode and spec.centred:
        raise ValueError("SAELens has no transcoders that subtract b_dec from what they read")
    dtype = tensors["W_dec"].dtype
    weights = {
        "W_enc": tensors["encoder.weight"].T,
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
    }
    weights |= {name: tensors[name] for name in ("threshold", "W_skip") if name in tensors}
    cfg = {
        "architecture": _architecture_of(saved),
        "d_in": spec.d_in,
        "d_sae": spec.num_latents,
        "dtype": _DTYPES[dtype],
        "device": "cpu",
        "apply_b_dec_to_input": bool(spec.centred),
        "normalize_activations": "layer_norm" if spec.layer_norm else "none",
        "reshape_activations": "none",
        "metadata": _metadata(saved, about),
    }
    if spec.selection == "topk":
        cfg |= {"k": spec.cfg.k, "rescale_acts_by_decoder_norm": has_unit_rows(tensors["W_dec"])}
    cfg |= {"d_out": spec.d_out} if spec.cfg.transcode else {}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, {name: t.to(dtype) for name, t in weights.items()})
    write_json(folder / CFG, cfg)


def _architecture_of(saved: Saved) -> str:
    spec = saved.spec
    if spec.selection == "topk":
        return "topk"
    kind = "skip_transcoder" if spec.cfg.skip_connection else "transcoder" if spec.cfg.transcode else ""
    return f"jumprelu_{kind}".rstrip("_")


def _metadata(saved: Saved, about: About) -> dict[str, Any]:
    reads = next(iter(saved.spec.reads), about.hookpoint)
    writes = next(iter(saved.spec.writes), about.hookpoint)
    if saved.spec.cfg.transcode and reads == writes and writes:
        reads = f"{writes}.input"
    found = {
        "sae_lens_version": _VERSION,
        "sae_lens_training_version": None,
        "model_name": about.model or None,
        "model_class_name": "HookedTransformer",
        "hook_name": hooks.to_lens(reads if saved.spec.cfg.transcode else writes) or None,
        "hookpoint": (reads if saved.spec.cfg.transcode else writes) or None,
        "dataset_path": about.dataset or None,
        "context_size": about.ctx_len or None,
        "prepend_bos": False,
    }
    if saved.spec.cfg.transcode:
        found |= {"hook_name_out": hooks.to_lens(writes) or None, "hookpoint_out": writes or None}
    return found


SAELENS = Format("saelens", "SAELens", f"{CFG} with {WEIGHTS}", (CFG,), _claim, hookpoint, read, write, knows=_knows)
