"""Cross-layer transcoders: each layer's dictionary writes that layer's output and those of all later ones.

ŷ^l = Σ_{s ≤ l} W_dec^{s→l} a^s + b^l (+ Σ W_skip^{s→l} x^s), with a^s the code of x^s. The dictionary of layer s is a
transcoder whose output is y^s, y^{s+1}, … side by side. b^l is part of layer l's. Source: Lindsey et al. 2025,
"Circuit Tracing", transformer-circuits.pub.

With decoders tied by source W_dec^{s→l} = c^{s→l} W_dec^s and W_skip^{s→l} = c^{s→l} W_skip^s, with one number c for
each pair of layers. Tied by target row i of W_dec^{s→l} is c_i^{s→l} times row i of W_dec^l, with a number for each
latent too. W_skip then writes its own layer alone. Either way c^{s→s} = 1, the dictionary of layer s is a transcoder of
its own module, and `layer_scale` holds its c.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from sae.dictionary.autoencoder import Encoded, Sae
from sae.dictionary.partial import acts_at_levels, partial_names


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
    needed = specs[0].writes or ("its layers",)
    if missing := [layer for layer in needed if layer not in layers]:
        raise ValueError(
            f"a cross-layer transcoder must be whole, which needs the dictionaries of {', '.join(needed)}, got "
            f"{', '.join(names)}; do not leave out {', '.join(missing)}"
        )
    for index, (name, spec) in enumerate(zip(names, specs, strict=True)):
        if spec.writes != layers[index:]:
            raise ValueError(
                f"{name} must write {', '.join(layers[index:])}, as the others of its cross-layer transcoder say, got "
                f"{', '.join(spec.writes)}; its cfg.json is of another one"
            )
        shared = ("num_latents", "selection", "k") if spec.cfg.tied_by_target else ()
        for option in ("tie_decoders", "prefixes", "budgets", *shared):
            one, other = (getattr(each if option in shared else each.cfg, option) for each in (spec, specs[0]))
            if one != other:
                raise ValueError(
                    f"{option} must be the same in all layers of a cross-layer transcoder, got {one} in {name} and "
                    f"{other} in {names[0]}; take all layers from one run"
                )
    starts = accumulate((spec.own_width for spec in specs), initial=0)
    return [Member(name, saes[name], start) for name, start in zip(names, starts, strict=False)]


class Together(NamedTuple):
    """The layers of one cross-layer transcoder that are here, in their order; other processes may have the others."""

    layers: Sequence[Member]
    width: int
    """Width of the output of all layers, side by side."""
    sum_: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Adds up over the processes that have the others."""

    @classmethod
    def of(cls, saes: Mapping[str, Sae], layout: Mapping[str, slice], sum_: Callable[[Tensor], Tensor]) -> "Together":
        """Layers among `saes`. `layout` says of all layers, by name, where the output of each is in that of all."""
        here = [Member(name, saes[name], own.start) for name, own in layout.items() if name in saes]
        return cls(here, max(own.stop for own in layout.values()), sum_)

    @classmethod
    def whole(cls, layers: Sequence[Member]) -> "Together":
        """All layers of one, which are here."""
        return cls(layers, layers[-1].own.stop)

    def reconstruct(
        self, xs: Sequence[Float[Tensor, "*batch d_in"]]
    ) -> tuple[list[Encoded], Float[Tensor, "*batch d_out"]]:
        """The code of each layer, of what each reads, and all layers' outputs side by side."""
        codes = [layer.sae.encode(x) for layer, x in zip(self.layers, xs, strict=True)]
        return codes, self._decoded(codes, xs)

    def parts(self, codes: Sequence[Encoded], xs: Sequence[Tensor]) -> dict[str, Float[Tensor, "*batch d_out"]]:
        """What all layers' outputs are by a part of each layer's latents, by `partial_names`."""
        by_layer = [acts_at_levels(layer.sae, *code) for layer, code in zip(self.layers, codes, strict=True)]
        found = {}
        for name, acts in zip(partial_names(self.layers[0].sae), zip(*by_layer, strict=True), strict=True):
            some = [Encoded(kept, code.top_indices) for kept, code in zip(acts, codes, strict=True)]
            found[name] = self._decoded(some, xs)
        return found

    def _decoded(self, codes: Sequence[Encoded], xs: Sequence[Tensor]) -> Float[Tensor, "*batch d_out"]:
        if self.layers[0].sae.cfg.tied_by_target:
            return self._decoded_by_target(codes, xs)
        made = [layer.sae.decode(*code, x) for layer, code, x in zip(self.layers, codes, xs, strict=True)]
        if self.layers[0].sae.layer_scale is None:
            total = made[0].new_zeros(*made[0].shape[:-1], self.width)
            for layer, own in zip(self.layers, made, strict=True):
                total[..., layer.start :] += own
            return self.sum_(total)
        biases = torch.stack([layer.sae.b_dec for layer in self.layers])
        total = (self._scales() @ (torch.stack(made, -2) - biases)).flatten(-2)
        for layer in self.layers:
            total[..., layer.own] += layer.sae.b_dec
        return self.sum_(total)

    def _decoded_by_target(self, codes: Sequence[Encoded], xs: Sequence[Tensor]) -> Float[Tensor, "*batch d_out"]:
        """Each layer's decoder is given the codes of all layers up to it."""
        scales, d = self._scales(), self.layers[0].sae.d_out
        held, width = [layer.start // d for layer in self.layers], max(code.top_acts.shape[-1] for code in codes)
        # JumpReLU's codes are as wide as they need; an activation of 0 writes nothing.
        acts, indices = ([F.pad(t, (0, width - t.shape[-1])) for t in each] for each in zip(*codes, strict=True))
        everyone = partial(of_all, held=held, count=len(scales), sum_=self.sum_)
        every, factors = Encoded(everyone(acts), everyone(indices)), everyone([*scales.unbind(1)])
        total = every.top_acts.new_zeros(*every.top_acts.shape[1:-1], self.width)
        for at, layer, x in zip(held, self.layers, xs, strict=True):
            earlier = [weighted(Encoded(*(t[s] for t in every)), factors[s, at]) for s in range(at + 1)]
            total[..., layer.own] += layer.sae.decode(*side_by_side(earlier), x)
        return self.sum_(total)

    def _scales(self) -> Float[Tensor, "layers held *latents"]:
        """c^{s→l} of tied decoders, at [l, s]; 0 for an earlier l."""
        return tied_scales([layer.sae for layer in self.layers], self.width // self.layers[0].sae.d_out)


def tied_scales(saes: Iterable[Sae], count: int) -> Float[Tensor, "layers held *latents"]:
    """c^{s→l} of these of `count` layers with tied decoders, at [l, s]; 0 for an earlier l."""
    scales = [sae.layer_scale for sae in saes if sae.layer_scale is not None]
    earlier = [each.new_zeros(count - len(each), *each.shape[1:]) for each in scales]
    return torch.stack([torch.cat(column) for column in zip(earlier, scales, strict=True)], 1)


def of_all(
    tensors: Sequence[Shaped[Tensor, "*shape"]], *, held: Sequence[int], count: int, sum_: Callable[[Tensor], Tensor]
) -> Shaped[Tensor, "count *shape"]:
    """The tensors of all `count` layers, from those that each process has: here of the layers `held`."""
    if len(held) == count:
        return torch.stack([*tensors])
    found = tensors[0].new_zeros(count, *tensors[0].shape)
    found[list(held)] = torch.stack([*tensors])
    return sum_(found)


def weighted(code: Encoded, factors: Float[Tensor, "latents"]) -> Encoded:
    """The code with each activation times its latent's factor."""
    return Encoded(code.top_acts * factors[code.top_indices], code.top_indices)


def side_by_side(codes: Sequence[Encoded]) -> Encoded:
    """One code of the entries of several."""
    return Encoded(*(torch.cat(each, -1) for each in zip(*codes, strict=True)))


def reconstruct(
    layers: Sequence[Member], xs: Sequence[Float[Tensor, "*batch d_in"]]
) -> tuple[list[Encoded], Float[Tensor, "*batch d_out"]]:
    """The code of each layer, of what each reads, and all layers' outputs side by side."""
    return Together.whole(layers).reconstruct(xs)


def _written_by(sae: Sae, code: Encoded, x: Any) -> Sequence[Float[Tensor, "*batch d"]]:
    """What a layer writes for its own module and for each later one."""
    out = sae.decode(*code, x)
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
    written: dict[tuple[int, int], Any] = {}
    return {layer.sae.spec.writes[0]: LayerCoder(layer.sae, index, written) for index, layer in enumerate(layers)}


class LayerCoder:
    """One layer among all."""

    reads_input, decodes_with_input = True, True

    def __init__(self, sae: Sae, index: int, written: dict[tuple[int, int], Any]) -> None:
        """`written` is shared: of the forward that runs, what layer s wrote for layer l, by (s, l).

        With ties by target it is a code, which layer l's decoder decodes.
        """
        self._sae, self._index, self._written = sae, index, written
        self.num_latents = sae.num_latents

    def encode(self, x: Tensor) -> Encoded:
        """The code of the layer."""
        return self._sae.encode(x)

    def decode(self, top_acts: Tensor, top_indices: Tensor, x: Any) -> Float[Tensor, "*batch d"]:
        """The layer's output, with what the earlier ones wrote for it."""
        if self._index == 0:
            self._written.clear()  # what a forward that ended early has left
        sae, code = self._sae, Encoded(top_acts, top_indices)
        own: Any
        later: list[Any]
        if sae.cfg.tied_by_target and sae.layer_scale is not None:
            own, *later = code, *(weighted(code, factors) for factors in sae.layer_scale[1:])
        else:
            own, *later = _written_by(sae, code, x)
        for further, part in enumerate(later, self._index + 1):
            self._written[self._index, further] = part
        if missing := [source for source in range(self._index) if (source, self._index) not in self._written]:
            raise ValueError(
                f"all modules of a cross-layer transcoder must be grafted together, but its layers {missing}, counted "
                "from 0, have not run in this forward; give graft all coders"
            )
        before = [self._written.pop((source, self._index)) for source in range(self._index)]
        if isinstance(own, Encoded):
            moved = [Encoded(*(t.to(top_acts.device) for t in part)) for part in before]
            return sae.decode(*side_by_side([*moved, own]), x)
        return torch.stack([own, *(part.to(own) for part in before)]).sum(0) if before else own
