"""The hookpoints that a dictionary writes, each measured by itself."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from sae import lm
from sae.dictionary.autoencoder import Sae
from sae.dictionary.cross_layer import Member, Together, members
from sae.dictionary.losses import at_least_float32
from sae.dictionary.partial import partial_names, partial_reconstructions
from sae.dictionary.wiring import Wiring, side_by_side

Dictionaries = Mapping[str, Mapping[str, Sae]]
"""Autoencoders by the label of their checkpoint and by hookpoint. A crosscoder may have any name."""


def kind_of_no_autoencoder(sae: Sae) -> str:
    """Kind of a dictionary that does not write, at one hookpoint, what it reads; empty for an autoencoder."""
    return "crosscoder" if sae.cfg.crosscode else "transcoder" if sae.reads_input else ""


class Target(NamedTuple):
    """One hookpoint that a dictionary writes."""

    sae: Sae
    reads: tuple[str, ...]
    writes: str
    part: slice | None = None
    """Its dimensions in the dictionary's output. None: all."""
    layers: tuple[Member, ...] = ()
    """All layers of its cross-layer transcoder: together they write it."""

    @property
    def parts(self) -> list[str]:
        """Parts of the dictionary that are measured too, by `partial_names`."""
        return partial_names(self.sae)

    @property
    def width(self) -> int:
        """Width of the activations there."""
        if self.layers:
            return self.sae.spec.own_width
        return self.sae.d_out if self.part is None else self.part.stop - self.part.start


Targets = Mapping[str, Mapping[str, Target]]
"""Targets by label and by the name of the row: the hookpoint that is written."""


class Coded(NamedTuple):
    """A dictionary's code and output for a batch."""

    acts: Float[Tensor, "batch seq width"]
    indices: Int[Tensor, "batch seq width"]
    recon: Float[Tensor, "batch seq d_out"]
    parts: Mapping[str, Float[Tensor, "batch seq d_out"]] = MappingProxyType({})
    """Outputs of parts of the dictionary (`partial_reconstructions`)."""

    @classmethod
    def of(cls, target: Target, activations: Mapping[str, Tensor]) -> "Coded":
        """The code and output of the dictionary for activations by hookpoint."""
        sae, parts = target.sae, {name: activations[name] for name in target.reads}
        read = at_least_float32(side_by_side({name: x.to(sae.device) for name, x in parts.items()}, target.reads))
        acts, indices = sae.encode(read)
        also = (read,) if sae.decodes_with_input else ()
        recon = sae.decode(acts, indices, *also)
        return cls(acts, indices, recon, partial_reconstructions(sae, acts, indices, *also, whole=recon))


def coded_layers(layers: Sequence[Member], activations: Mapping[str, Tensor]) -> list[Coded]:
    """Each layer's code and output for a batch, in a cross-layer transcoder; others add to the output."""
    reads = [activations[layer.sae.spec.reads[0]].to(layer.sae.device) for layer in layers]
    together = Together.whole(layers)
    xs = [at_least_float32(x) for x in reads]
    codes, total = together.reconstruct(xs)
    parts = together.parts(codes, xs)
    return [
        Coded(*code, total[..., layer.own], {name: recon[..., layer.own] for name, recon in parts.items()})
        for layer, code in zip(layers, codes, strict=True)
    ]


def targets(dictionaries: Dictionaries) -> dict[str, dict[str, Target]]:
    """The targets of each checkpoint. Raises ValueError if two of its dictionaries write the same hookpoint."""
    return {label: _of_one(saes) for label, saes in dictionaries.items()}


def _of_one(saes: Mapping[str, Sae]) -> dict[str, Target]:
    found: dict[str, Target] = {}
    layers = [layer for group in members(saes).values() for layer in _layers_of(group)]
    others = (each for name, sae in saes.items() if not sae.cfg.cross_layer for each in _targets_of(name, sae))
    for row, target in (*layers, *others):
        if row in found:
            raise ValueError(
                f"a checkpoint must have one dictionary that writes {row}, got several; "
                "measure them apart, with --hookpoints"
            )
        found[row] = target
    return found


def _layers_of(group: Sequence[Member]) -> Iterator[tuple[str, Target]]:
    for layer in group:
        spec = layer.sae.spec
        yield spec.writes[0], Target(layer.sae, spec.reads, spec.writes[0], layers=tuple(group))


def _targets_of(name: str, sae: Sae) -> Iterator[tuple[str, Target]]:
    if not sae.cfg.crosscode:
        wiring = Wiring.of(name, transcode=sae.reads_input)
        yield name, Target(sae, (sae.reads,) if sae.reads else wiring.reads, wiring.writes[0])
        return
    if not sae.spec.parts:
        raise ValueError(f"the crosscoder {name} must know its hookpoints to be measured, got none; load it from a run")
    for hookpoint, part in sae.spec.parts.items():
        yield hookpoint, Target(sae, sae.spec.writes, hookpoint, part)


def reads_later(target: Target, order: Sequence[str]) -> bool:
    """Whether a dictionary reads, in a forward with this order of hookpoints, later than it writes."""
    last = max(order.index(hookpoint) for hookpoint in target.reads)
    return last > order.index(target.writes) or target.part is not None


def places_of(dictionaries: Dictionaries) -> list[str]:
    """The hookpoints that dictionaries write and read, each once."""
    found = targets(dictionaries)
    return harvested(found, rows(found).values())


def sides(found: Targets) -> list[str]:
    """The models in which something is written, by what their hookpoints' names begin with; "" for a single one."""
    return list(dict.fromkeys(lm.side_of(at) for at in rows(found).values()))


def of_side(found: Targets, side: str) -> dict[str, dict[str, Target]]:
    """The targets in one of the models."""
    return {
        label: {row: target for row, target in of_one.items() if lm.side_of(target.writes) == side}
        for label, of_one in found.items()
    }


def rows(found: Targets) -> dict[str, str]:
    """The hookpoint of each row, over all checkpoints."""
    return {row: target.writes for of_one in found.values() for row, target in of_one.items()}


def harvested(found: Targets, hookpoints: Iterable[str]) -> list[str]:
    """These hookpoints, and those that are read to reconstruct them."""
    reads = (hookpoint for of_one in found.values() for target in of_one.values() for hookpoint in target.reads)
    return list(dict.fromkeys([*hookpoints, *reads]))
