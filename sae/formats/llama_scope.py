"""Llama Scope: hyperparams.json with checkpoints/final.safetensors, and llamascopium: config.json with sae_weights.

Scales of activations are folded, so that a dictionary reads and writes raw ones. Let s be sqrt(d) / norm of what is
read, and t the same of what is written. An activation is then 1 / s of theirs, and W_dec is s / t of theirs.
"""

import math
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

import sae.formats.hooks as hooks
from sae.dictionary.spec import Saved, in_float32, with_centre
from sae.formats.files import check_link, write_tensors
from sae.formats.format import About, Claim, Format, beside, config_of, in_folder
from sae.formats.record import (
    Contents,
    as_jumprelu,
    check_plain,
    record,
    transposed,
    with_norms_folded,
)
from sae.storage.files import read_json, short, write_json

HYPERPARAMS, FINAL = "hyperparams.json", "checkpoints/final.safetensors"
CONFIG, WEIGHTS, TORCH_WEIGHTS = "config.json", "sae_weights.safetensors", "sae_weights.pt"
_NORM = "dataset_average_activation_norm"
_LOG = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")


def _claim_old(file: PurePosixPath, names: Container[str]) -> Claim | None:
    return in_folder(file, HYPERPARAMS, FINAL) if file.name == HYPERPARAMS else None


def _claim_new(file: PurePosixPath, names: Container[str]) -> Claim | None:
    is_ours = file.name in (WEIGHTS, TORCH_WEIGHTS) and beside(file, CONFIG) in names
    if not is_ours or beside(file, "cfg.json") in names:
        return None
    return in_folder(file, CONFIG, file.name)


def hookpoint(path: Path) -> str:
    """The hookpoint that the configuration names as its output, else as its input."""
    config = config_of(path, CONFIG, HYPERPARAMS)
    return hooks.to_module(config.get("hook_point_out") or config.get("hook_point_in"))


def _ends(config: dict[str, Any]) -> dict[str, Any]:
    """Whether it is a transcoder, and its hookpoints."""
    reads, writes = config.get("hook_point_in"), config.get("hook_point_out") or config.get("hook_point_in")
    transcode = reads != writes
    ends = {"reads": hooks.to_module(reads)} if transcode else {}
    return {"transcode": transcode, "writes": hooks.to_module(writes), **ends}


def _positive(path: Path, name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    if type(value) not in (int, float) or not 0 < value < 1e30:
        raise ValueError(f"{path}: {name} must be a positive number, got {short(value)}")
    return float(value)


def read_old(path: Path) -> Saved:
    """A dictionary of Llama Scope. Raises ValueError naming the file and the rule it breaks."""
    config_path, file = path / HYPERPARAMS, path / FINAL
    check_link(config_path)
    config = read_json(config_path)
    found = Contents.of(file)
    W_enc, b_enc, W_dec, b_dec = found.tensors("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    found.check_all_taken()
    tensors = {"encoder.weight": W_enc, "encoder.bias": b_enc, "W_dec": transposed(W_dec), "b_dec": b_dec}
    if W_enc.dim() == 2:
        norms = config.get(_NORM)
        norms = norms if isinstance(norms, dict) else {}
        scales = [W_enc.shape[1] ** 0.5 / _positive(config_path, f"{_NORM}.{end}", norms.get(end)) for end in
                  ("in", "out")]  # fmt: skip
        tensors = _scaled(tensors, *scales)
    threshold = config.get("jump_relu_threshold", 0.0)
    if type(threshold) not in (int, float) or not 0 <= threshold < 1e30:
        raise ValueError(f"{config_path}: jump_relu_threshold must be a number from 0 on, got {short(threshold)}")
    # The one threshold is of raw activations already.
    tensors["threshold"] = torch.full_like(tensors["encoder.bias"], threshold)
    return record(path, tensors, "jumprelu", centred=False, **_ends(config))


def _scaled(tensors: dict[str, Tensor], reads: float, writes: float) -> dict[str, Tensor]:
    """The dictionary for raw activations, without the scales of what is read and written."""
    if reads == writes == 1:
        return tensors
    wide = in_float32(tensors)
    wide["encoder.bias"] = wide["encoder.bias"] / reads
    wide |= {"threshold": wide["threshold"] / reads} if "threshold" in wide else {}
    return wide | {"W_dec": wide["W_dec"] * (reads / writes), "b_dec": wide["b_dec"] / writes}


def read_new(path: Path) -> Saved:
    """A dictionary of llamascopium, or of Llama Scope R1. Raises ValueError naming the file and the rule it breaks."""
    config_path = path / CONFIG
    file = path / (WEIGHTS if (path / WEIGHTS).exists() else TORCH_WEIGHTS)
    check_link(config_path)
    config = read_json(config_path)
    rule = _rule(config_path, config)
    found = Contents.of(file)
    if isinstance(found.get("sae"), dict):
        found = Contents(file, found["sae"])
    tensors = _tensors(found)
    if rule == "jumprelu":
        name = next((name for name in _LOG if name in found), _LOG[0])
        tensors["threshold"] = found.tensors(name)[0].exp()
    elif rule == "relu":
        tensors["threshold"] = torch.zeros_like(tensors["encoder.bias"])
    found.check_all_taken(f"{_NORM}.")
    shape = tensors["encoder.weight"].shape
    if config.get("sparsity_include_decoder_norm", True) is True and len(shape) == 2:
        tensors = with_norms_folded(tensors)
    if config.get("norm_activation", "dataset-wise") == "dataset-wise" and len(shape) == 2:
        tensors = _scaled(tensors, *_scales(config_path, config, found, shape[1]))
    selection, k = ("topk", config.get("top_k")) if rule == "topk" else ("jumprelu", None)
    return record(path, tensors, selection, k=k, centred=False, **_ends(config))


def _rule(path: Path, config: dict[str, Any]) -> str:
    """The activation function. Raises ValueError for what is no dictionary of one layer, or needs a batch."""
    if config.get("sae_type", "sae") != "sae" or config.get("use_glu_encoder"):
        kind = "use_glu_encoder" if config.get("use_glu_encoder") else f"sae_type={short(config['sae_type'])}"
        raise ValueError(f"{path}: {kind} is not supported; known are autoencoders and transcoders of one layer")
    rule, norm = config.get("act_fn", "relu"), config.get("norm_activation", "dataset-wise")
    if rule not in ("relu", "jumprelu", "topk"):
        raise ValueError(
            f"{path}: act_fn must be relu, jumprelu or topk, which look at one token, got {short(rule)}; "
            "convert it to jumprelu with llamascopium first"
        )
    if norm not in ("dataset-wise", "inference"):
        raise ValueError(f"{path}: norm_activation must be dataset-wise or inference, got {short(norm)}")
    return str(rule)


def _tensors(found: Contents) -> dict[str, Tensor]:
    if "encoder.weight" in found:  # Llama Scope R1
        W_enc, b_enc, W_dec = found.tensors("encoder.weight", "encoder.bias", "decoder.weight")
        tensors = {"encoder.weight": W_enc, "encoder.bias": b_enc, "W_dec": transposed(W_dec)}
    else:
        W_enc, b_enc, W_dec = found.tensors("W_E", "b_E", "W_D")
        tensors = {"encoder.weight": transposed(W_enc), "encoder.bias": b_enc, "W_dec": W_dec}
    name = next((name for name in ("b_D", "decoder.bias") if name in found), "")
    if tensors["W_dec"].dim() != 2:
        raise ValueError(f"{found.path}: the decoder must be a matrix, got shape {tuple(tensors['W_dec'].shape)}")
    b_dec = found.tensors(name)[0] if name else tensors["W_dec"].new_zeros(tensors["W_dec"].shape[1])
    return tensors | {"b_dec": b_dec}


def _scales(path: Path, config: dict[str, Any], found: dict[str, Any], d_in: int) -> tuple[float, float]:
    """sqrt(d) over the mean length of what is read, and of what is written: from the weights' file or config.json."""
    listed = config.get(_NORM)
    norms = dict(listed) if isinstance(listed, dict) else {}
    norms |= {name.removeprefix(f"{_NORM}."): t for name, t in found.items() if name.startswith(f"{_NORM}.")}
    ends = (config.get("hook_point_in"), config.get("hook_point_out") or config.get("hook_point_in"))
    scales = []
    for end, short_name in zip(ends, ("in", "out"), strict=True):
        norm = norms.get(end if isinstance(end, str) else "", norms.get(short_name))
        scales.append(d_in**0.5 / _positive(path, f"{_NORM} of {short(end)}", norm))
    return scales[0], scales[1]


def write(folder: Path, saved: Saved, about: About) -> None:
    """Write one dictionary in llamascopium's format, folded ("inference"). Raises ValueError for what it cannot say."""
    check_plain(saved, "llamascopium", skip=False)
    if saved.spec.selection != "topk":
        saved = as_jumprelu(saved, "llamascopium")
    if saved.spec.d_in != saved.spec.d_out:
        raise ValueError(
            f"llamascopium has one width for what is read and written, got {saved.spec.d_in} and {saved.spec.d_out}"
        )
    spec, tensors = with_centre(saved, False)
    weights = {"W_E": tensors["encoder.weight"].T, "b_E": tensors["encoder.bias"], "W_D": tensors["W_dec"],
               "b_D": tensors["b_dec"]}  # fmt: skip
    rule = spec.selection
    if rule == "jumprelu":
        least = tensors["threshold"].clamp_min(0)  # activations are positive
        rule = "jumprelu" if least.any() else "relu"
        weights |= {_LOG[0]: least.log()} if rule == "jumprelu" else {}
    writes = next(iter(spec.writes), about.hookpoint)
    reads = next(iter(spec.reads), f"{writes}.input") if spec.cfg.transcode else writes
    config = {
        "sae_type": "sae", "d_model": spec.d_in, "expansion_factor": _factor(spec.d_in, spec.num_latents),
        "use_decoder_bias": True, "act_fn": rule, "norm_activation": "inference",
        "sparsity_include_decoder_norm": False, "top_k": spec.cfg.k, "use_triton_kernel": False,
        "hook_point_in": hooks.to_lens(reads), "hook_point_out": hooks.to_lens(writes), "use_glu_encoder": False,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, config)


def _factor(d_in: int, num_latents: int) -> float:
    """Expansion factor with which llamascopium, rounding down, gets from the width to the latents."""
    factor = num_latents / d_in
    while int(d_in * factor) < num_latents:
        factor = math.nextafter(factor, math.inf)
    return factor


LLAMA_SCOPE = Format(
    "llama-scope", "Llama Scope", f"{HYPERPARAMS} with {FINAL}", (HYPERPARAMS,), _claim_old, hookpoint, read_old
)
LLAMASCOPIUM = Format(
    "llamascopium", "llamascopium", f"{CONFIG} with {WEIGHTS}", (CONFIG,), _claim_new, hookpoint, read_new, write
)
