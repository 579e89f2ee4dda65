"""dictionary_learning: a folder with ae.pt and config.json. Files apply to raw activations."""

from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

import sae.formats.hooks as hooks
from sae.dictionary.spec import Saved, with_centre
from sae.formats.files import read_torch, write_torch
from sae.formats.format import About, Claim, Format, beside, config_of, in_folder
from sae.formats.record import (
    Contents,
    as_jumprelu,
    check_plain,
    gate_as_threshold,
    record,
    transposed,
)
from sae.storage.files import short, write_json

WEIGHTS, CONFIG = "ae.pt", "config.json"
_CLASSES = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder", "GatedAutoEncoder",
            "AutoEncoder", "AutoEncoderNew")  # fmt: skip
_TRAINERS = {"AutoEncoderTopK": "TopKTrainer", "BatchTopKSAE": "BatchTopKTrainer",
             "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer", "JumpReluAutoEncoder": "JumpReluTrainer",
             "AutoEncoder": "StandardTrainer", "AutoEncoderNew": "StandardTrainerAprilUpdate"}  # fmt: skip
_OWN_MATRICES = ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
"""Classes with matrices W_enc (d_in, latents) and W_dec of their own; the others have two linear layers."""
_B_DEC = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}
"""Where b_dec has another name."""
_SCALED = ("bias", "b_dec", "b_enc", "encoder.bias", "decoder.bias", "decoder_bias", "mag_bias", "gate_bias")


def _claim(file: PurePosixPath, names: Container[str]) -> Claim | None:
    if file.name != WEIGHTS:
        return None
    return in_folder(file, *(name for name in (WEIGHTS, CONFIG) if name == WEIGHTS or beside(file, CONFIG) in names))


def _options(path: Path) -> dict[str, Any]:
    trainer = config_of(path, CONFIG).get("trainer")
    return trainer if isinstance(trainer, dict) else {}


def hookpoint(path: Path) -> str:
    """The submodule that config.json names, which is `resid_post_layer_<n>` for the output of a block."""
    options = _options(path)
    own, name, layer = options.get("hookpoint"), options.get("submodule_name"), options.get("layer")
    if isinstance(own, str):
        return own
    if isinstance(name, str) and name.startswith("resid_post") and type(layer) is int:
        return hooks.to_module(f"blocks.{layer}.hook_resid_post", options.get("lm_name"))
    return hooks.to_module(name)


def read(path: Path) -> Saved:
    """The dictionary in a folder. Raises ValueError naming the file and the rule it breaks."""
    weights = path / WEIGHTS
    found = Contents(weights, _unwrapped(weights, read_torch(weights)))
    kind, options = _class_of(path, found), _options(path)
    k, place = options.get("k"), hookpoint(path)
    if isinstance(found.get("k"), Tensor) and found["k"].numel() == 1:
        k = int(found["k"])
    if kind == "GatedAutoEncoder":
        W_enc, W_dec, b_dec, *gate = found.tensors(
            "encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"
        )
        if {tuple(t.shape) for t in gate} != {(len(W_enc) if W_enc.dim() == 2 else -1,)}:
            raise ValueError(f"{weights}: r_mag, gate_bias and mag_bias must have an entry for each latent")
        tensors = {"W_dec": transposed(W_dec), "b_dec": b_dec} | gate_as_threshold(W_enc, *gate)
        found.check_all_taken()
        return record(path, tensors, "jumprelu", centred=True, writes=place)
    tensors = _tensors(kind, found)
    if kind == "AutoEncoderTopK":
        found.check_all_taken("threshold")  # of the class that selects in a batch
        return record(path, tensors, "topk", k=k, centred=True, writes=place)
    centred = kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE", "AutoEncoder")
    k = k if "BatchTopK" in kind else None
    tensors["threshold"] = _threshold(kind, found, tensors["encoder.bias"])
    prefixes = _prefixes(found) if kind == "MatryoshkaBatchTopKSAE" else []
    found.check_all_taken()
    return record(path, tensors, "jumprelu", k=k, centred=centred, prefixes=prefixes, writes=place)


def _unwrapped(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The dictionary's own tensors, also of an interrupted run, where biases belong to scaled activations."""
    if not isinstance(found.get("ae"), dict):
        return found
    tensors, factor = dict(found["ae"]), found.get("norm_factor")
    if not all(isinstance(name, str) for name in tensors):
        raise ValueError(f"{path}: ae must hold tensors by name")
    if isinstance(factor, Tensor) and factor.numel() == 1:
        factor = float(factor)
    if factor is None or factor == 1:
        return tensors
    if type(factor) not in (int, float) or not 0 < factor < 1e30:
        raise ValueError(f"{path}: norm_factor must be a positive number, got {short(factor)}")
    for name in _SCALED:
        if isinstance(tensors.get(name), Tensor):
            tensors[name] = tensors[name] * factor
    threshold = tensors.get("threshold")
    if isinstance(threshold, Tensor):
        tensors["threshold"] = torch.where(threshold >= 0, threshold * factor, threshold)
    return tensors


def _class_of(path: Path, found: dict[str, Any]) -> str:
    """The class that config.json names; without one, the class that alone has these tensors."""
    kind = _options(path).get("dict_class")
    if kind is not None:
        if kind not in _CLASSES:
            raise ValueError(f"{path / CONFIG}: dict_class must be one of {', '.join(_CLASSES)}, got {short(kind)}")
        # Its trainers write AutoEncoder for AutoEncoderNew too, which alone has a decoder with a bias.
        return "AutoEncoderNew" if kind == "AutoEncoder" and "decoder.bias" in found else str(kind)
    by_tensor = {"group_sizes": "MatryoshkaBatchTopKSAE", "gate_bias": "GatedAutoEncoder", "bias": "AutoEncoder",
                 "decoder.bias": "AutoEncoderNew"}  # fmt: skip
    alone = next((kind for name, kind in by_tensor.items() if name in found), "")
    if not alone and "W_enc" in found and "k" not in found:
        alone = "JumpReluAutoEncoder"
    if not alone:
        raise ValueError(
            f"{path} must hold {CONFIG}, as {WEIGHTS} alone does not say whether it is of AutoEncoderTopK or of "
            "BatchTopKSAE; fetch it too"
        )
    return alone


def _tensors(kind: str, found: Contents) -> dict[str, Tensor]:
    """Encoder and decoder by our names."""
    if kind in _OWN_MATRICES:
        W_enc, b_enc, W_dec, b_dec = found.tensors("W_enc", "b_enc", "W_dec", "b_dec")
        return {"encoder.weight": transposed(W_enc), "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    name = _B_DEC.get(kind, "b_dec")
    W_enc, b_enc, W_dec, b_dec = found.tensors("encoder.weight", "encoder.bias", "decoder.weight", name)
    return {"encoder.weight": W_enc, "encoder.bias": b_enc, "W_dec": transposed(W_dec), "b_dec": b_dec}


def _threshold(kind: str, found: Contents, b_enc: Tensor) -> Tensor:
    if kind.startswith("AutoEncoder"):
        return torch.zeros_like(b_enc)
    (threshold,) = found.tensors("threshold")
    if kind == "JumpReluAutoEncoder":
        return threshold
    if threshold.numel() != 1:
        raise ValueError(f"{found.path}: threshold must be one number, got shape {tuple(threshold.shape)}")
    return threshold.to(b_enc.dtype).expand(b_enc.shape)


def _prefixes(found: Contents) -> list[int]:
    sizes = found.get("group_sizes")
    if not isinstance(sizes, Tensor) or sizes.dim() != 1 or sizes.is_floating_point() or not 0 < len(sizes) <= 10_000:
        raise ValueError(f"{found.path}: group_sizes must be whole numbers, got {short(sizes)}")
    return [int(end) for end in sizes.cumsum(0)[:-1]]


def write(folder: Path, saved: Saved, about: About) -> None:
    """Write one autoencoder. Raises ValueError for what the library cannot say."""
    check_plain(saved, "dictionary_learning", transcoders=False)
    saved, kind = _as_one_of_theirs(saved)
    spec, found = saved
    W_enc, b_enc, W_dec, b_dec = (found[name] for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec"))
    if kind in _OWN_MATRICES:
        tensors = {"W_enc": W_enc.T, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    else:
        name = _B_DEC.get(kind, "b_dec")
        tensors = {"encoder.weight": W_enc, "encoder.bias": b_enc, "decoder.weight": W_dec.T, name: b_dec}
    options: dict[str, Any] = {}
    if "TopK" in kind:
        options["k"] = spec.cfg.k
        tensors["k"] = torch.tensor(spec.cfg.k, dtype=torch.int32)
        tensors["threshold"] = found["threshold"][0].float() if "threshold" in found else torch.tensor(-1.0)
    if kind == "MatryoshkaBatchTopKSAE":
        ends = [0, *spec.cfg.prefixes, spec.num_latents]
        sizes = [b - a for a, b in zip(ends, ends[1:], strict=False) if b > a]
        tensors["group_sizes"] = torch.tensor(sizes)
        options["group_fractions"] = [size / spec.num_latents for size in sizes]
    if kind == "JumpReluAutoEncoder":
        tensors["threshold"] = found["threshold"]
    place = next(iter(spec.writes), about.hookpoint)
    trainer = {
        "trainer_class": _TRAINERS[kind], "dict_class": kind, "activation_dim": spec.d_in,
        "dict_size": spec.num_latents, "layer": hooks.block_of(place), "lm_name": about.model,
        "submodule_name": place, "hookpoint": place, **options,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_torch(folder / WEIGHTS, tensors)
    config = {"trainer": trainer, "buffer": {"ctx_len": about.ctx_len} if about.ctx_len else {}}
    write_json(folder / CONFIG, config)


def _as_one_of_theirs(saved: Saved) -> tuple[Saved, str]:
    """The dictionary in the form of one of the library's classes, and that class's name."""
    if saved.spec.selection == "topk":
        return with_centre(saved, True), "AutoEncoderTopK"
    saved = as_jumprelu(saved, "dictionary_learning")
    threshold = saved.tensors["threshold"]
    same = bool((threshold == threshold[0]).all())
    if saved.spec.cfg.prefixes and same:
        return with_centre(saved, True), "MatryoshkaBatchTopKSAE"
    if same and threshold[0] == 0:
        return saved, "AutoEncoder" if saved.spec.centred else "AutoEncoderNew"
    if same and saved.spec.centred:
        return saved, "BatchTopKSAE"
    return with_centre(saved, False), "JumpReluAutoEncoder"


DICTIONARY_LEARNING = Format(
    "dictionary-learning", "dictionary_learning", f"{WEIGHTS} with {CONFIG}", (CONFIG,), _claim, hookpoint, read, write
)
