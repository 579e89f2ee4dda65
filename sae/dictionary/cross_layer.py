"""Cross-layer transcoders: each layer's dictionary writes that layer's output and those of all later ones.

ŷ^l = Σ_{s ≤ l} W_dec^{s→l} a^s + b^l (+ Σ W_skip^{s→l} x^s), with a^s the code of x^s. The dictionary of layer s is a
transcoder whose output is y^s, y^{s+1}, … side by side. b^l is part of layer l's. Source: Lindsey et al. 2025,
"Circuit Tracing", transformer-circuits.pub.

With tied decoders W_dec^{s→l} = c^{s→l} W_dec^s and W_skip^{s→l} = c^{s→l} W_skip^s, with one number c for each pair of
layers, c^{s→s} = 1. The dictionary of layer s is then a transcoder of its own module, and `layer_scale` its c.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sae.dictionary.autoencoder import Encoded, Sae


class Member(NamedTuple):
    """One layer of a cross-layer transcoder."""

    name: str
    sae: Sae
    start: int
    """Where its output begins in that of all layers, side by side."""

    @property
    def own(self) -> slice:
        """The dimensions of its own layer in the output of all layers."""
        return slice(self.start, self.start + self.sae.spec.own_width)


def members(saes: Mapping[str, Sae]) -> dict[str, list[Member]]:
    """The cross-layer transcoders among dictionaries by name, in the order of their layers, by the label of the names.

    Raises ValueError if a layer of one is missing.
    """
    found: dict[str, list[str]] = {}
    for name, sae in saes.items():
        if sae.cfg.cross_layer:
            found.setdefault(name.rpartition("/")[0], []).append(name)
    order = {label: sorted(names, key=lambda name: -len(saes[name].spec.writes)) for label, names in found.items()}
    return {label: _in_order(names, saes) for label, names in order.items()}


def _in_order(names: Sequence[str], saes: Mapping[str, Sae]) -> list[Member]:
    specs = [saes[name].spec for name in names]
    layers = tuple(spec.writes[0] if spec.writes else "" for spec in specs)
    if any(spec.writes != layers[index:] for index, spec in enumerate(specs)):
        needed = specs[0].writes or ("its layers",)
        raise ValueError(
            f"a cross-layer transcoder must be whole, which needs the dictionaries of {', '.join(needed)}, got "
            f"{', '.join(names)}; do not leave any out"
        )
    starts = accumulate((spec.own_width for spec in specs), initial=0)
    return [Member(name, saes[name], start) for name, start in zip(names, starts, strict=False)]


def scales(layers: Sequence[Member]) -> Float[Tensor, "layers layers"]:
    """c^{s→l} of tied decoders, at [l, s]; 0 for an earlier l."""
    found = [layer.sae.layer_scale for layer in layers]
    return torch.stack([F.pad(c, (s, 0)) for s, c in enumerate(found) if c is not None], 1)


def reconstruct(
    layers: Sequence[Member], xs: Sequence[Float[Tensor, "*batch d_in"]]
) -> tuple[list[Encoded], Float[Tensor, "*batch d_out"]]:
    """The code of each layer, of what each reads, and all layers' outputs side by side."""
    codes = [layer.sae.encode(x) for layer, x in zip(layers, xs, strict=True)]
    made = [layer.sae.decode(*code, x) for layer, code, x in zip(layers, codes, xs, strict=True)]
    if layers[0].sae.layer_scale is not None:
        biases = torch.stack([layer.sae.b_dec for layer in layers])
        alone = torch.stack(made, -2) - biases
        return codes, (scales(layers) @ alone + biases).flatten(-2)
    total = made[0]
    for layer, own in zip(layers[1:], made[1:], strict=True):
        total[..., layer.start :] += own
    return codes, total


def _written_by(sae: Sae, out: Float[Tensor, "*batch d_out"]) -> Sequence[Float[Tensor, "*batch d"]]:
    """What a layer writes for its own module and for each later one, from what its decoder makes."""
    if sae.layer_scale is None:
        return out.split(sae.spec.widths, -1)
    return [out, *(scale * (out - sae.b_dec) for scale in sae.layer_scale[1:])]


def coders(saes: Mapping[str, Sae]) -> dict[str, "LayerCoder"]:
    """What `sae.graft` puts in the place of all modules of one cross-layer transcoder, by hookpoint.

    In a forward each layer encodes what reaches it, and adds what the earlier ones wrote for it. Raises ValueError for
    other than the dictionaries of one cross-layer transcoder.
    """
    if len(found := list(members(saes).values())) != 1:
        raise ValueError(
            f"coders must be given the dictionaries of one cross-layer transcoder, got {len(found)} of such among "
            f"{', '.join(saes) or 'none'}; graft others by themselves"
        )
    (layers,) = found
    written: dict[tuple[int, int], Tensor] = {}
    return {layer.sae.spec.writes[0]: LayerCoder(layer.sae, index, written) for index, layer in enumerate(layers)}


class LayerCoder:
    """One layer among all."""

    reads_input, decodes_with_input = True, True

    def __init__(self, sae: Sae, index: int, written: dict[tuple[int, int], Tensor]) -> None:
        """`written` is shared: of the forward that runs, what layer s wrote for layer l, by (s, l)."""
        self._sae, self._index, self._written = sae, index, written
        self.num_latents = sae.num_latents

    def encode(self, x: Tensor) -> Encoded:
        """The code of the layer."""
        return self._sae.encode(x)

    def decode(self, top_acts: Tensor, top_indices: Tensor, x: Any) -> Float[Tensor, "*batch d"]:
        """The layer's output, with what the earlier ones wrote for it."""
        if self._index == 0:
            self._written.clear()  # what a forward that ended early has left
        out = self._sae.decode(top_acts, top_indices, x)
        own, *later = _written_by(self._sae, out)
        for further, part in enumerate(later, self._index + 1):
            self._written[self._index, further] = part
        if missing := [source for source in range(self._index) if (source, self._index) not in self._written]:
            raise ValueError(
                f"all modules of a cross-layer transcoder must be grafted together, but its layers {missing}, counted "
                "from 0, have not run in this forward; give graft all coders"
            )
        before = [self._written.pop((source, self._index)) for source in range(self._index)]
        return torch.stack([own, *(part.to(own) for part in before)]).sum(0) if before else own
