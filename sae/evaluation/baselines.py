"""Dictionaries that nobody trained, of equal L0: a number's worth shows beside theirs."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sae.config import SaeConfig
from sae.dictionary.autoencoder import Sae
from sae.dictionary.losses import spread
from sae.evaluation.targets import kind_of_no_autoencoder

NAMES = {"random": "random rows", "pca": "PCA"}
"""What each of `--baselines` is called in tables."""
FIT_TOKENS = 16_384
"""Tokens, the first that count, that the baselines are fitted on."""


def can_have_baselines(saes: Mapping[str, Sae]) -> bool:
    """Whether all dictionaries write what they read."""
    return not any(map(kind_of_no_autoencoder, saes.values()))


def check_can_have_baselines(saes: Mapping[str, Sae]) -> None:
    """Raise ValueError for a dictionary, by hookpoint, that does not write what it reads."""
    for hookpoint, sae in saes.items():
        if kind := kind_of_no_autoencoder(sae):
            raise ValueError(
                f"baselines must stand beside autoencoders, got a {kind} at {hookpoint}; leave out --baselines, or "
                "choose others with --hookpoints"
            )


def baselines(
    kinds: Sequence[str], saes: Mapping[str, Sae], activations: Mapping[str, Float[Tensor, "tokens d_in"]]
) -> dict[str, dict[str, Sae]]:
    """Dictionaries by the name of the kind and by hookpoint, each with the L0 that the trained one has.

    `activations` are some tokens that both are fitted to; massive ones do not count.
    """
    made: dict[str, dict[str, Sae]] = {NAMES[kind]: {} for kind in kinds}
    for hookpoint, sae in saes.items():
        fit = _Fit.of(sae, activations[hookpoint])
        for kind in kinds:
            make = random_rows if kind == "random" else principal_components
            made[NAMES[kind]][hookpoint] = make(fit, zlib.crc32(hookpoint.encode()))
    return made


@dataclass(frozen=True)
class _Fit:
    """What a baseline is fitted to."""

    sae: Sae
    x: Float[Tensor, "tokens d_in"]
    """Ordinary tokens, float32."""
    mean: Float[Tensor, "d_in"]
    k: int
    """The trained dictionary's L0, rounded."""

    @classmethod
    @torch.no_grad()
    def of(cls, sae: Sae, x: Float[Tensor, "tokens d_in"]) -> "_Fit":
        x = x.to(sae.device).float()
        x = x[spread(x, x).rule.counts(x) > 0]
        counts: list[int] = [int((sae.encode(part).top_acts > 0).sum()) for part in x.split(2048)]
        fired = sum(counts)
        return cls(sae, x, x.mean(0), max(1, round(fired / len(x))))


@torch.no_grad()
def random_rows(fit: _Fit, seed: int) -> Sae:
    """As many random unit rows as latents, in W_enc and W_dec alike; a token keeps its k largest. Their scale is
    fitted.

    The factor on W_enc minimises Σ‖x − x̂‖². Source of the comparison: arXiv:2602.14111.
    """
    drawn = torch.randn(fit.sae.num_latents, fit.sae.d_in, generator=torch.Generator().manual_seed(seed))
    sae = with_rows(F.normalize(drawn, dim=1), fit.mean, fit.k)
    product = energy = torch.zeros((), device=sae.device)
    for part in fit.x.split(2048):
        recon = sae.decode(*sae.encode(part)) - fit.mean
        product, energy = product + (recon * (part - fit.mean)).sum(), energy + recon.square().sum()
    sae.encoder.weight.mul_(product / energy.clamp_min(torch.finfo(energy.dtype).tiny))
    return sae


@torch.no_grad()
def principal_components(fit: _Fit, seed: int) -> Sae:
    """The principal components and their negatives as latents; a token keeps its k largest projections.

    It reconstructs best of all codes with k entries on an orthonormal basis. So it is a stronger baseline than the
    first k components alone.
    """
    centred = (fit.x - fit.mean).double()
    components = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1).T.to(fit.x.dtype)
    return with_rows(torch.cat([components, -components]), fit.mean, fit.k)


@torch.no_grad()
def with_rows(rows: Float[Tensor, "latents d_in"], centre: Float[Tensor, "d_in"], k: int) -> Sae:
    """The dictionary with these rows as W_enc and W_dec, on the device of `centre`; a token keeps its k largest, or
    all.
    """
    sae = Sae(len(centre), SaeConfig(num_latents=len(rows), k=min(k, len(rows))), device=centre.device)
    sae.W_dec.copy_(rows)
    sae.encoder.weight.copy_(rows)
    sae.b_dec.copy_(centre)
    return sae
