"""Quality of reconstructions of activations that training never saw."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae.dictionary.autoencoder import Encoded, Sae
from sae.dictionary.cross_layer import Together, members
from sae.dictionary.losses import EVERYTHING, Ordinary, VarianceSums, at_least_float32, fvu
from sae.dictionary.partial import partial_errors, partial_names, partial_reconstructions
from sae.dictionary.wiring import Pair


class ReconstructionMetrics(NamedTuple):
    """Metrics of reconstructions, from sums over all tokens, in float32 at least. The autoencoder computes in its own
    type.
    """

    tokens: int
    fvu: float
    """Fraction of variance unexplained (`losses.fvu`), over the ordinary tokens."""
    fvu_with_massive: float
    """FVU over all tokens, with the massive ones (`losses.spread`), which may have nearly all of the variance."""
    massive_tokens: int
    """Number of massive tokens."""
    l0: float
    """Mean number of latents that fire on an ordinary token."""
    unused_fraction: float
    """Share of latents that fire on none of the tokens. Falls as tokens are added."""
    firings: float = math.nan
    """Mean over latents of the number of tokens that one fires on."""
    fvu_at: dict[str, float] | None = None
    """FVU over the ordinary tokens at each hookpoint of a crosscoder, and of parts (`partial_names`)."""


class ReconstructionMeter:
    """Sums over tokens for one autoencoder."""

    def __init__(self, sae: Sae, rule: Ordinary) -> None:
        """`rule` says which tokens are ordinary."""
        self._sae, self._rule = sae, rule
        self._own = slice(0, sae.spec.own_width)
        """Dimensions that are measured; a layer of a cross-layer transcoder has its own."""
        self._variance = VarianceSums.zeros(self._own.stop, sae.device)
        self._ordinary_variance = self._variance.clone()
        self._squared_errors = torch.zeros(2, dtype=torch.float64, device=sae.device)
        self._ordinary_fired = torch.zeros((), dtype=torch.float64, device=sae.device)
        self._parts = sae.spec.parts if sae.spec.is_autoencoder else {}
        self._variances = [VarianceSums.zeros(part.stop - part.start, sae.device) for part in self._parts.values()]
        self._errors = torch.zeros(len(self._parts), dtype=torch.float64, device=sae.device)
        self._partial_errors = torch.zeros(len(partial_names(sae)), dtype=torch.float64, device=sae.device)
        self._counts = torch.zeros(sae.num_latents, dtype=torch.int64, device=sae.device)

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Account for activations x (tokens, d_in), of which y (tokens, d_out) is to be made; None: x itself."""
        encoded, y = self._sae.encode(x), x if y is None else y
        recon = self._sae.decode(*encoded, x)
        self.count(encoded, recon, y)
        if len(self._partial_errors):
            self.count_parts(partial_reconstructions(self._sae, *encoded, x, whole=recon), y)

    def count_parts(self, parts: Mapping[str, Tensor], y: Tensor) -> None:
        """Account for reconstructions of y (tokens, d_out) by parts of the dictionary."""
        scaled, own = self._sae.scaled, self._own
        y = scaled(at_least_float32(y))[:, own]
        found = {name: scaled(at_least_float32(recon))[:, own] for name, recon in parts.items()}
        self._partial_errors += partial_errors(found, y, self._rule.counts(y))

    def count(self, encoded: Encoded, recon: Tensor, x: Tensor) -> None:
        """Account for a reconstruction of x (tokens, d_out), to which others may have added."""
        recon = self._sae.scaled(at_least_float32(recon))[:, self._own]
        x = self._sae.scaled(at_least_float32(x))[:, self._own]
        ordinary = self._rule.counts(x).to(x.dtype)
        errors = torch.linalg.vector_norm(x - recon, dim=1).square()
        self._squared_errors += torch.stack([errors.sum(), ordinary.dot(errors)]).double()
        self._variance = self._variance.merge(VarianceSums.of(x))
        self._ordinary_variance = self._ordinary_variance.merge(VarianceSums.of(x, ordinary))
        for index, part in enumerate(self._parts.values()):
            self._errors[index] += ordinary.dot(torch.linalg.vector_norm((x - recon)[:, part], dim=1).square())
            self._variances[index] = self._variances[index].merge(VarianceSums.of(x[:, part], ordinary))
        fired = encoded.top_acts > 0
        self._counts.index_add_(0, encoded.top_indices.flatten(), fired.flatten().long())
        self._ordinary_fired += ordinary.double().dot(fired.sum(1).double())

    def result(self) -> ReconstructionMetrics:
        """The metrics over all tokens so far."""
        tokens = int(self._variance.tokens)
        by_part = zip(self._parts, self._errors, self._variances, strict=True)
        fvu_at = {name: fvu(error, variance.total_variance()).item() for name, error, variance in by_part}
        whole = self._ordinary_variance.total_variance()
        errors = zip(partial_names(self._sae), self._partial_errors, strict=True)
        fvu_at |= {name: fvu(error, whole).item() for name, error in errors}
        return ReconstructionMetrics(
            tokens=tokens,
            fvu=fvu(self._squared_errors[1], whole).item(),
            fvu_with_massive=fvu(self._squared_errors[0], self._variance.total_variance()).item(),
            massive_tokens=tokens - int(self._ordinary_variance.tokens),
            l0=self._ordinary_fired.item() / max(1, int(self._ordinary_variance.tokens)),
            unused_fraction=(self._counts == 0).double().mean().item(),
            firings=self._counts.double().mean().item(),
            fvu_at=fvu_at or None,
        )


@torch.no_grad()
def _made(group: Together, batch: Mapping[str, Tensor | Pair]) -> tuple[list[Encoded], Tensor, dict[str, Tensor]]:
    """Outputs of a cross-layer transcoder for a batch, and of its parts, for all of its layers."""
    xs = [batch[layer.name][0] for layer in group.layers]
    codes, total = group.reconstruct(xs)
    return codes, total, group.parts(codes, xs)


def evaluate_reconstruction(
    saes: Mapping[str, Sae],
    batches: Iterable[Mapping[str, Tensor | Pair]],
    rules: Mapping[str, Ordinary] | None = None,
    together: Sequence[Together] | None = None,
) -> dict[str, ReconstructionMetrics]:
    """Metrics by hookpoint over `batches` of activations {hookpoint: (tokens, d_in)}, or of pairs of what is read and
    what is to be written; no batch, no metrics.

    `rules` say by hookpoint which tokens are ordinary; without one all are. Layers of cross-layer transcoders
    reconstruct `together`; None: with those among `saes`.
    """
    if together is None:
        together = [Together.whole(group) for group in members(saes).values()]
    place = {
        layer.name: (group, index, layer.start)
        for group, each in enumerate(together)
        for index, layer in enumerate(each.layers)
    }
    meters = {name: ReconstructionMeter(sae, (rules or {}).get(name, EVERYTHING)) for name, sae in saes.items()}
    for batch in batches:
        made = [_made(group, batch) for group in together]
        for name, meter in meters.items():
            given = batch[name]
            if name not in place or isinstance(given, Tensor) or given.y is None:
                meter.add(*((given,) if isinstance(given, Tensor) else given))
                continue
            (group, index, start), y = place[name], given.y
            (codes, total, parts), places = made[group], slice(start, start + y.shape[1])
            meter.count(codes[index], total[:, places], y)
            if parts:
                meter.count_parts({part: recon[:, places] for part, recon in parts.items()}, y)
    return {name: meter.result() for name, meter in meters.items()}
