"""The neutral record of one dictionary: which tensors it has, their shapes and their meaning. No file format."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sae.config import SaeConfig

PER_LATENT = ("encoder.weight", "encoder.bias", "W_dec")
"""Tensors of a dictionary in training that have a row for each latent, and are split where latents are sharded."""


@dataclass(frozen=True)
class Spec:
    """Computation of a dictionary, beside its numbers."""

    cfg: SaeConfig
    """Configuration: k, and how the dictionary was, or is to be, trained."""
    d_in: int
    """Width of what it reads."""
    d_out: int
    """Width of what it writes; `d_in` for an autoencoder."""
    num_latents: int
    selection: str = ""
    """Rule that keeps latents: topk, batchtopk, groupmax, or jumprelu. Empty: the rule of `cfg`."""
    centred: bool | None = None
    """Whether b_dec is subtracted from what is read. None: yes, unless the dictionary is a transcoder."""
    layer_norm: bool = False
    """Whether a token is normalised to mean 0 and standard deviation 1 before encoding, and the output scaled back
    (OpenAI's autoencoders)."""
    writes: tuple[str, ...] = field(default=())
    """Hookpoints that it writes, if they are known."""
    reads: tuple[str, ...] = field(default=())
    """Hookpoints that it reads, if they are known and others than `writes`."""
    widths: tuple[int, ...] = field(default=())
    """Widths of the hookpoints of a crosscoder, or of a layer of a cross-layer transcoder, in the order of `writes`;
    they add up to d_out. Empty where decoders are tied: each is then d_out."""

    def __post_init__(self) -> None:
        if not self.selection:
            object.__setattr__(self, "selection", self.cfg.selection)
        if self.centred is None:
            object.__setattr__(self, "centred", not self.cfg.transcode)
        if self.widths and (sum(self.widths) != self.d_out or len(self.widths) != len(self.writes)):
            raise ValueError(
                f"the widths of the {len(self.writes)} hookpoints that are written must add up to d_out={self.d_out}, "
                f"got {list(self.widths)}"
            )

    @property
    def k(self) -> int:
        """Latents that a token keeps, in the mean over tokens; meaningless for jumprelu."""
        return self.cfg.k

    @property
    def is_autoencoder(self) -> bool:
        """Whether it writes what it reads."""
        return not self.cfg.transcode

    @property
    def own_width(self) -> int:
        """Width of the first hookpoint that is written: of a layer of a cross-layer transcoder its own."""
        return self.widths[0] if self.cfg.cross_layer and self.widths else self.d_out

    @property
    def every_width(self) -> tuple[int, ...]:
        """Widths of all hookpoints that a crosscoder or a layer of a cross-layer transcoder writes, if they are
        known."""
        return (self.d_out,) * len(self.writes) if self.cfg.tie_decoders else self.widths

    @property
    def parts(self) -> dict[str, slice]:
        """The dimensions of each written hookpoint, where there are several; empty for other dictionaries."""
        names = self.writes if self.widths else ()
        ends = zip(names, self.widths, accumulate(self.widths), strict=True)
        return {name: slice(end - width, end) for name, width, end in ends}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that the dictionary has, by name."""
        n = self.num_latents
        found: dict[str, tuple[int, ...]] = {
            "encoder.weight": (n, self.d_in),
            "encoder.bias": (n,),
            "W_dec": (n, self.d_out),
            "b_dec": (self.d_out,),
        }
        if self.cfg.skip_connection:
            found["W_skip"] = (self.d_out, self.d_in)
        if self.cfg.tie_decoders:
            each = (n,) if self.cfg.tied_by_target else ()
            found["layer_scale"] = (max(1, len(self.writes)), *each)
        elif self.cfg.crosscode or self.cfg.cross_layer:
            found["scale"] = (self.d_out,)
        if self.selection in ("batchtopk", "jumprelu"):
            found["threshold"] = (n,) if self.selection == "jumprelu" else ()
        return found

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless these are the dictionary's tensors, of its shapes."""
        shapes = self.shapes()
        if unlike := set(shapes) ^ set(tensors):
            raise ValueError(f"the dictionary must have the tensors {', '.join(shapes)}, differing: {sorted(unlike)}")
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(tensors[name].shape)}")


class Saved(NamedTuple):
    """One dictionary as a value: what formats read and write, and what checkpoints carry."""

    spec: Spec
    tensors: dict[str, Tensor]
    """Tensors by the names of `Spec.shapes`."""


def in_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32 or wider: folding into half precision would round."""
    return {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in tensors.items()}


def with_centre(saved: Saved, centred: bool) -> Saved:
    """The same function with, or without, b_dec being subtracted from what is read.

    b_enc' = b_enc ∓ W_enc b_dec, computed in float64. Half precision becomes float32, which holds the result.
    Raises ValueError for a transcoder, whose b_dec lies in another space.
    """
    spec, tensors = saved
    if spec.centred == centred:
        return saved
    if spec.d_in != spec.d_out:
        raise ValueError(
            f"b_dec must be as wide as what is read to be subtracted from it, got {spec.d_out} and {spec.d_in}"
        )
    wide = in_float32(tensors)
    shift = wide["encoder.weight"].double() @ wide["b_dec"].double()
    bias = wide["encoder.bias"].double() + (shift if centred else -shift)
    wide["encoder.bias"] = bias.to(wide["encoder.bias"].dtype)
    return Saved(replace(spec, centred=centred), wide)
