"""Cross-layer transcoders: each layer's dictionary writes that layer's output and those of all later ones.

ŷ^l = Σ_{s ≤ l} W_dec^{s→l} a^s + b^l (+ Σ W_skip^{s→l} x^s), with a^s the code of x^s. The dictionary of layer s is a
transcoder whose output is y^s, y^{s+1}, … side by side. b^l is part of layer l's. Source: Lindsey et al. 2025,
"Circuit Tracing", transformer-circuits.pub.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionary.autoencoder import Encoded, Sae


class Member(NamedTuple):
    """One layer of a cross-layer transcoder."""

    name: str
    sae: Sae
    start: int
    """Where its output begins in that of the first layer."""

    @property
    def own(self) -> slice:
        """The dimensions of its own layer in the output of the first layer."""
        return slice(self.start, self.start + self.sae.spec.widths[0])


def members(saes: Mapping[str, Sae]) -> dict[str, list[Member]]:
    """The cross-layer transcoders among dictionaries by name, in the order of their layers, by the label of the names.

    Raises ValueError if a layer of one is missing.
    """
    found: dict[str, list[str]] = {}
    for name, sae in saes.items():
        if sae.cfg.cross_layer:
            found.setdefault(name.rpartition("/")[0], []).append(name)
    return {label: _in_order(sorted(names, key=lambda n: -saes[n].d_out), saes) for label, names in found.items()}


def _in_order(names: Sequence[str], saes: Mapping[str, Sae]) -> list[Member]:
    specs = [saes[name].spec for name in names]
    layers = tuple(spec.writes[0] if spec.writes else "" for spec in specs)
    if any(spec.writes != layers[index:] for index, spec in enumerate(specs)):
        needed = specs[0].writes or ("its layers",)
        raise ValueError(
            f"a cross-layer transcoder must be whole, which needs the dictionaries of {', '.join(needed)}, got "
            f"{', '.join(names)}; do not leave any out"
        )
    whole = saes[names[0]].d_out
    return [Member(name, saes[name], whole - saes[name].d_out) for name in names]


def reconstruct(
    layers: Sequence[Member], xs: Sequence[Float[Tensor, "*batch d_in"]]
) -> tuple[list[Encoded], Float[Tensor, "*batch d_out"]]:
    """The code of each layer, of what each reads, and all layers' outputs side by side."""
    codes = [layer.sae.encode(x) for layer, x in zip(layers, xs, strict=True)]
    total: Tensor | None = None
    for layer, code, x in zip(layers, codes, xs, strict=True):
        own = layer.sae.decode(*code, x)
        if total is None:
            total = own
        else:
            total[..., layer.start :] += own
    assert total is not None
    return codes, total


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
        own, *later = out.split(self._sae.spec.widths, -1)
        for further, part in enumerate(later, self._index + 1):
            self._written[self._index, further] = part
        if missing := [source for source in range(self._index) if (source, self._index) not in self._written]:
            raise ValueError(
                f"all modules of a cross-layer transcoder must be grafted together, but its layers {missing}, counted "
                "from 0, have not run in this forward; give graft all coders"
            )
        before = [self._written.pop((source, self._index)) for source in range(self._index)]
        return torch.stack([own, *(part.to(own) for part in before)]).sum(0) if before else own
