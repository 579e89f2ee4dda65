"""Dictionaries to index: the hookpoints that each reads, and what its latents write at each hookpoint."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae import lm
from sae.dictionary.cross_layer import members
from sae.dictionary.wiring import Wiring, side_by_side

Rows = Callable[[slice | Tensor], Float[Tensor, "some d"]]
"""Rows that an activation of 1 of some latents, a range or numbers, writes, as the model has them."""


class End(NamedTuple):
    """One of several hookpoints that a dictionary writes."""

    hookpoint: str
    rows: Rows
    scale: Float[Tensor, "d"] | None
    """Factor of the units in which all hookpoints count alike; None where they are the model's own."""

    def lengths(self, some: slice | Tensor) -> Float[Tensor, "some"]:
        """Norms of the rows in the units in which all hookpoints count alike."""
        rows = self.rows(some)
        return torch.linalg.vector_norm(rows if self.scale is None else rows * self.scale, dim=1)


class Read(NamedTuple):
    """A dictionary, and its hookpoint."""

    hookpoint: str
    """Hookpoint that it writes, which an autoencoder reads too; the name of a crosscoder."""
    dictionary: Any
    ends: tuple[End, ...] = ()
    """Hookpoints that it writes, if there are several: of a crosscoder, or of a layer of a cross-layer transcoder."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Hookpoints that it reads; a transcoder's is the input of its module."""
        if self.dictionary.cfg.crosscode:
            return tuple(self.dictionary.spec.writes)
        if known := getattr(self.dictionary, "reads", ""):
            return (str(known),)
        return Wiring.of(self.hookpoint, transcode=getattr(self.dictionary, "reads_input", False)).reads

    def of(self, activations: Mapping[str, Tensor]) -> Float[Tensor, "*tokens d_in"]:
        """Activations that it reads, of those of hookpoints."""
        return side_by_side(activations, self.reads)

    def counted_alike(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_in"]:
        """Activations that it reads, in the units in which its hookpoints count alike."""
        return self.dictionary.scaled(x.to(self.dictionary.device)) if self.dictionary.cfg.crosscode else x

    @property
    def relative_norms(self) -> Float[Tensor, "latents ends"]:
        """The share of each end in the norms of a latent's rows (`evaluation.relative_norms`)."""
        lengths = torch.stack([end.lengths(slice(None)) for end in self.ends], 1)
        return lengths / lengths.sum(1, keepdim=True).clamp_min(torch.finfo(lengths.dtype).tiny)

    def towards_logits(self) -> dict[str, "Effect"]:
        """The part of a latent that counts at the end of the model; of two models, by what their hookpoints begin with.

        A crosscoder's rows say what its hookpoints hold, one state after the other: the last is nearest to the end. A
        layer of a cross-layer transcoder writes into one stream several times, so that its rows add up.
        """
        if not self.ends:
            return {"": Effect(self.hookpoint, self._own)}
        if self.dictionary.cfg.crosscode:
            last = {lm.side_of(end.hookpoint): end for end in self.ends}
            return {side: Effect(end.hookpoint.removeprefix(side), end.rows) for side, end in last.items()}
        return {"": Effect(self.ends[-1].hookpoint, self._sum)}

    def lengths_in(self, side: str) -> Float[Tensor, "latents"]:
        """Norms of the rows over all hookpoints of one of two models."""
        own = [end.lengths(slice(None)) for end in self.ends if lm.side_of(end.hookpoint) == side]
        return torch.linalg.vector_norm(torch.stack(own), dim=0)

    def _own(self, some: slice | Tensor) -> Tensor:
        rows: Tensor = self.dictionary.W_dec.detach()[some].float()
        scale = getattr(self.dictionary, "scale", None)
        return rows if scale is None else rows / scale

    def _sum(self, some: slice | Tensor) -> Tensor:
        found = [end.rows(some) for end in self.ends]
        return torch.stack([rows.to(found[0]) for rows in found if rows.shape == found[0].shape]).sum(0)


class Effect(NamedTuple):
    """The part of each latent that reaches the logits by itself."""

    hookpoint: str
    """Its name in its own model."""
    rows: Rows


def reads_of(dictionaries: Mapping[str, Any]) -> dict[str, Read]:
    """The dictionaries of one checkpoint by hookpoint, with what those of several hookpoints write at each.

    Raises ValueError for a crosscoder that does not say its hookpoints, and for some layers of a cross-layer
    transcoder whose decoders are shared with others.
    """
    shared = {name: sae for name, sae in dictionaries.items() if sae.cfg.tied_by_target}
    layers = {layer.sae.spec.writes[0]: layer.sae for each in members(shared).values() for layer in each}
    return {name: Read(name, sae, tuple(_ends(name, sae, layers))) for name, sae in dictionaries.items()}


def _ends(name: str, sae: Any, layers: Mapping[str, Any]) -> Iterable[End]:
    if sae.cfg.crosscode and not sae.spec.parts:
        raise ValueError(f"the crosscoder {name} must know its hookpoints to be shown, got none; load it from a run")
    if not (sae.writes_several or sae.reads_several):
        return
    for at, hookpoint in enumerate(sae.spec.writes):
        part = sae.spec.parts.get(hookpoint)
        if part is not None:
            yield End(hookpoint, partial(_part, sae, part), None if sae.scale is None else sae.scale[part])
        elif sae.cfg.tied_by_target:
            yield End(hookpoint, partial(_weighted, layers[hookpoint], sae.layer_scale[at]), None)
        else:
            yield End(hookpoint, partial(_weighted, sae, sae.layer_scale[at].expand(sae.num_latents)), None)


def _part(sae: Any, part: slice, some: slice | Tensor) -> Tensor:
    rows: Tensor = sae.W_dec.detach()[some, part].float()
    return rows if sae.scale is None else rows / sae.scale[part]


def _weighted(sae: Any, factors: Float[Tensor, "latents"], some: slice | Tensor) -> Tensor:
    rows: Tensor = sae.W_dec.detach()[some].float()
    return rows * factors.detach()[some, None].to(rows)
