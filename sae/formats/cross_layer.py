"""Layers of others' cross-layer transcoders: one decoder for each layer that is written, in one tensor."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sae.dictionary.spec import Saved, Spec, in_float32
from sae.formats.record import record

_MOST_LAYERS = 10_000


class Apart(NamedTuple):
    """A layer's tensors, with a decoder for each layer that it writes."""

    W_dec: Tensor
    """(num_latents, layers, d): for its own layer first."""
    b_dec: Tensor
    """(d,): its own layer's part of the output that no latent makes."""


def joined(path: Path, tensors: dict[str, Tensor], *, reads: str, writes: Sequence[str]) -> Saved:
    """The layer with these tensors by the names of `Spec`, but for W_dec, which is (num_latents, layers, d).

    b_dec (d,) and W_skip (d, d_in) are those of its own layer. Raises ValueError, naming `path`, for what does not fit.
    """
    W_dec = tensors["W_dec"]
    if W_dec.dim() != 3 or not 0 < W_dec.shape[1] == len(writes) <= _MOST_LAYERS:
        raise ValueError(
            f"{path}: W_dec must be (latents, layers, width) with {len(writes)} layers, got {tuple(W_dec.shape)}"
        )
    own = record(
        path, tensors | {"W_dec": W_dec[:, 0]}, "jumprelu", centred=False, transcode=True, reads=reads,
        writes=writes[0],
    )  # fmt: skip
    _, layers, width = W_dec.shape
    rest = (layers - 1) * width
    found = own.tensors | {"W_dec": W_dec.flatten(1).contiguous(), "b_dec": F.pad(own.tensors["b_dec"], (0, rest))}
    found |= {"W_skip": F.pad(found["W_skip"], (0, 0, 0, rest))} if "W_skip" in found else {}
    found["scale"] = found["b_dec"].new_ones(layers * width)
    spec = Spec(
        replace(own.spec.cfg, cross_layer=True), own.spec.d_in, layers * width, own.spec.num_latents, "jumprelu",
        centred=False, writes=tuple(writes), reads=(reads,), widths=(width,) * layers,
    )  # fmt: skip
    return Saved(spec, found)


def apart(saved: Saved) -> Apart:
    """The layer's decoders without scales, each by itself where they are tied. Raises ValueError if widths differ."""
    spec, tensors = saved
    layers = len(spec.writes)
    if spec.cfg.tied_by_target:
        raise ValueError(
            "a layer whose decoders are tied by target must be written with the layers that it shares them with; "
            "convert the folder of all of them"
        )
    if spec.cfg.tie_decoders:
        wide = in_float32(tensors)
        return Apart(wide["W_dec"][:, None] * wide["layer_scale"][:, None], tensors["b_dec"])
    if len(set(spec.widths)) > 1:
        raise ValueError(f"all layers must write one width to be said here, got {sorted(set(spec.widths))}")
    if not bool((tensors["scale"] == 1).all()):
        wide = in_float32(tensors)
        tensors = wide | {name: wide[name] / wide["scale"] for name in ("W_dec", "b_dec")}
    biases = tensors["b_dec"].unflatten(0, (layers, -1))
    if bool((biases[1:] != 0).any()):
        raise ValueError("a layer's b_dec must be of its own layer alone to be said here, got one for later layers too")
    return Apart(tensors["W_dec"].unflatten(1, (layers, -1)), biases[0])


def separated(saved: Saved, decoders: Sequence[Tensor]) -> Saved:
    """The layer with a decoder of its own for each that it writes, where they are tied by target.

    `decoders` are W_dec of each layer that it writes, from its own on. In float32.
    """
    spec, tensors = saved.spec, in_float32(saved.tensors)
    scale, own = tensors.pop("layer_scale"), spec.d_out
    width = own * len(scale)
    rows = [factors.unsqueeze(1) * W_dec.float() for factors, W_dec in zip(scale, decoders, strict=True)]
    tensors |= {"W_dec": torch.cat(rows, 1), "b_dec": F.pad(tensors["b_dec"], (0, width - own))}
    tensors |= {"W_skip": F.pad(tensors["W_skip"], (0, 0, 0, width - own))} if "W_skip" in tensors else {}
    cfg = replace(spec.cfg, tie_decoders=False)
    tensors["scale"] = torch.ones(width)
    return Saved(replace(spec, cfg=cfg, d_out=width, widths=(own,) * len(scale)), tensors)


def of_later_layers(hookpoint: str, block: int, layers: int) -> list[str]:
    """The hookpoints of `layers` blocks from `block` on, by that of the first."""
    return [hookpoint.replace(f".{block}", f".{block + further}", 1) for further in range(layers)]
