"""What a crosscoder of two models says of their difference: whose latents are, and whether that is so.

A latent with a short decoder row in one model need not be absent there. Its row may have shrunk, or other latents may
stand for it. Latent scaling measures both. Source: Minder et al. 2025, arXiv:2504.02922.

Here b_dec is no part of a reconstruction that latents are looked for in. It starts at the mean of the activations,
which is long, and would seem to hold a little of every latent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae import lm, ops
from sae.dictionary.autoencoder import Sae
from sae.dictionary.losses import at_least_float32

ONLY, SHARED = (0.1, 0.9), (0.4, 0.6)
"""Relative norms of latents of one model alone (at most, at least), and of both (between): Lindsey et al. 2024."""
LEAST_ERROR, LEAST_RECONSTRUCTION = 0.2, 0.5
"""Ratios ν^ε and ν^r from which a latent of one model counts as one of the other too."""
BINS = 10
LISTED = 1000
"""Latents of one model that eval.json names, at most, those of the most tokens."""


def two_models(dictionaries: Mapping[str, Mapping[str, Sae]]) -> dict[tuple[str, str], Sae]:
    """The crosscoders of two models, by label and name."""
    return {(label, name): sae for label, saes in dictionaries.items() for name, sae in saes.items() if dims_of(sae)}


def dims_of(sae: Sae) -> tuple[slice, slice] | None:
    """The dimensions of the first and of the second model; None unless each has some, side by side."""
    parts = {name: part for name, part in sae.spec.parts.items() if sae.cfg.crosscode}
    ends = []
    for side in lm.MODELS:
        own = [part for name, part in parts.items() if lm.side_of(name) == side]
        if not own or any(one.stop != next_one.start for one, next_one in zip(own, own[1:], strict=False)):
            return None
        ends.append(slice(own[0].start, own[-1].stop))
    return ends[0], ends[1]


def _width(part: slice) -> int:
    return int(part.stop - part.start)


def _are_alike(sae: Sae) -> bool:
    """Whether the places of both models are equally wide, one by one: a row of one is then a direction of the other."""
    widths = [
        [width for name, width in zip(sae.spec.writes, sae.spec.widths, strict=True) if lm.side_of(name) == side]
        for side in lm.MODELS
    ]
    return widths[0] == widths[1]


class DifferenceSums(NamedTuple):
    """Sums over tokens from which all latents' scales follow: some numbers a latent, whatever the number of tokens."""

    energy: Float[Tensor, "latents"]
    """Σ f²."""
    error: Float[Tensor, "direction model latents"]
    """Σ f ⟨d, ε⟩: d the latent's decoder row in model a or b, ε the error of the reconstruction in a or b."""
    reconstruction: Float[Tensor, "direction model latents"]
    """Σ f ⟨d, x̂⟩, with the reconstruction x̂, without b_dec, in the place of its error."""

    @classmethod
    def zeros(cls, latents: int) -> "DifferenceSums":
        """The sums of no token."""
        pairs = torch.zeros(2, 2, latents, dtype=torch.float64)
        return cls(pairs[0, 0].clone(), pairs.clone(), pairs)


@torch.no_grad()
def differences_of(
    sae: Sae,
    acts: Float[Tensor, "batch seq width"],
    indices: Int[Tensor, "batch seq width"],
    x: Float[Tensor, "batch seq d"],
    recon: Float[Tensor, "batch seq d"],
    where: Bool[Tensor, "batch seq"],
) -> DifferenceSums:
    """The sums of the tokens `where`, in the units in which all hookpoints count alike.

    They stay 0 where the models differ in width, since no row of one is a direction of the other.
    """
    dims = dims_of(sae)
    assert dims is not None
    f, latents = acts[where].double(), indices[where]
    zeros = DifferenceSums.zeros(sae.num_latents)
    sums = DifferenceSums(*(each.to(sae.device) for each in zeros))
    sums.energy.index_add_(0, latents.flatten(), f.square().flatten())
    if not _are_alike(sae):
        return sums
    made = sae.scaled(at_least_float32(recon[where]))
    left = sae.scaled(at_least_float32(x[where])) - made
    code = made - sae.b_dec
    for direction, own in enumerate(dims):
        rows = at_least_float32(sae.W_dec[:, own]).contiguous()
        for model, there in enumerate(dims):
            for total, y in ((sums.error, left), (sums.reconstruction, code)):
                dots = ops.gather_dot(y[:, there].to(rows.dtype).contiguous(), latents, rows)
                total[direction, model].index_add_(0, latents.flatten(), (f * dots.double()).flatten())
    return sums


@dataclass(frozen=True)
class Difference:
    """The latents of a crosscoder of two models, each measured by itself; NaN where it is not defined."""

    relative_norm: Float[Tensor, "latents"]
    """‖d_b‖ / (‖d_a‖ + ‖d_b‖), of the decoder rows in the units in which all hookpoints count alike."""
    cosine: Float[Tensor, "latents"]
    """Cosine of the decoder rows d_a and d_b; NaN where the models differ in width."""
    fired: Int[Tensor, "latents"]
    """Tokens on which it fired."""
    beta_error: Float[Tensor, "direction model latents"]
    """β of β f d ≈ ε + f d_model by least squares. d is the row in a or b, ε the error in a or b."""
    beta_reconstruction: Float[Tensor, "direction model latents"]
    """β of β f d ≈ x̂ by least squares. x̂ is the reconstruction in a or b, without b_dec."""

    @classmethod
    def of(cls, sae: Sae, sums: DifferenceSums, fired: Int[Tensor, "latents"]) -> "Difference":
        """The measures that follow from the sums, on the CPU."""
        dims = dims_of(sae)
        assert dims is not None
        rows = [sae.W_dec.detach()[:, part].double().cpu() for part in dims]
        norms = [torch.linalg.vector_norm(each, dim=1) for each in rows]
        undefined = torch.full_like(norms[0], torch.nan)
        alike, energy = _are_alike(sae), sums.energy.cpu()
        cosine, error, reconstruction = undefined, undefined.expand(2, 2, -1), undefined.expand(2, 2, -1)
        if alike:
            products = torch.stack([torch.stack([(d * own).sum(1) for own in rows]) for d in rows])
            cosine = products[0, 1] / (norms[0] * norms[1])
            below = torch.stack(norms).square().unsqueeze(1) * energy
            error = (sums.error.cpu() + energy * products) / below  # its own part is in what it is to explain
            reconstruction = sums.reconstruction.cpu() / below
        return cls(norms[1] / (norms[0] + norms[1]), cosine, fired.cpu(), error, reconstruction)

    @cached_property
    def nu_error(self) -> Float[Tensor, "direction latents"]:
        """ν^ε = β^ε of the other model / β^ε of the row's own: near 1 where the other model's row has shrunk."""
        return _ratios(self.beta_error)

    @cached_property
    def nu_reconstruction(self) -> Float[Tensor, "direction latents"]:
        """ν^r = β^r of the other model / β^r of the row's own: near 1 where other latents stand for it there."""
        return _ratios(self.beta_reconstruction)

    @cached_property
    def kinds(self) -> dict[str, Bool[Tensor, "latents"]]:
        """Which latents that fired are of one model alone, of both, or between these."""
        (least, most), (low, high), share = ONLY, SHARED, self.relative_norm
        found = {"a_only": share <= least, "shared": (share >= low) & (share <= high), "b_only": share >= most}
        found = {name: mask & (self.fired > 0) for name, mask in found.items()}
        return found | {"between": (self.fired > 0) & ~(found["a_only"] | found["shared"] | found["b_only"])}

    def direction_of(self, kind: str) -> int:
        """The model, 0 or 1, whose decoder rows are looked for in the other, for a kind of latents."""
        return 0 if kind == "a_only" else 1

    def confirmed(self, kind: str) -> Bool[Tensor, "latents"]:
        """The latents of one model alone, `a_only` or `b_only`, that latent scaling does not find in the other."""
        own = self.direction_of(kind)
        error, reconstruction = self.nu_error[own], self.nu_reconstruction[own]
        return self.kinds[kind] & (error < LEAST_ERROR) & (reconstruction < LEAST_RECONSTRUCTION)

    def to_json(self) -> dict[str, Any]:
        """Counts, medians and histograms, and each latent of one model alone with its measures."""
        shares = self.relative_norm[self.fired > 0]
        return {
            "fired": int((self.fired > 0).sum()),
            "counts": {kind: int(mask.sum()) for kind, mask in self.kinds.items()},
            "confirmed": {kind: int(self.confirmed(kind).sum()) for kind in ("a_only", "b_only")},
            "relative_norm": torch.histc(shares.float(), BINS, 0, 1).long().tolist(),
            "median": {kind: self.medians(kind) for kind in self.kinds},
            "a_only": self._listed("a_only"),
            "b_only": self._listed("b_only"),
        }

    def medians(self, kind: str) -> dict[str, float]:
        """Medians over a kind of latents; NaN for none."""
        mask, own = self.kinds[kind], self.direction_of(kind)
        measures = {
            "cosine": self.cosine,
            "nu_error": self.nu_error[own],
            "nu_reconstruction": self.nu_reconstruction[own],
        }
        return {name: values[mask].nanmedian().item() if mask.any() else torch.nan for name, values in measures.items()}

    def _listed(self, kind: str) -> list[dict[str, Any]]:
        own, sure = self.direction_of(kind), self.confirmed(kind)
        latents = self.kinds[kind].nonzero().flatten()
        latents = latents[self.fired[latents].argsort(descending=True, stable=True)][:LISTED]
        return [
            {
                "latent": latent, "fired": int(self.fired[latent]), "confirmed": bool(sure[latent]),
                "relative_norm": self.relative_norm[latent].item(), "cosine": self.cosine[latent].item(),
                "nu_error": self.nu_error[own, latent].item(),
                "nu_reconstruction": self.nu_reconstruction[own, latent].item(),
            }
            for latent in latents.tolist()
        ]  # fmt: skip


def _ratios(betas: Float[Tensor, "direction model latents"]) -> Float[Tensor, "direction latents"]:
    """β of the other model / β of the direction's own."""
    return torch.stack([betas[0, 1] / betas[0, 0], betas[1, 0] / betas[1, 1]])
