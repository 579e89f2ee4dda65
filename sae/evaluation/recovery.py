"""Recovery of known features by a dictionary."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionary.autoencoder import Sae
from sae.dictionary.losses import VarianceSums, fvu
from sae.evaluation.matching import match
from sae.evaluation.moments import f1_of

_PART = 2048


class Recovery(NamedTuple):
    """Recovery of known features by one dictionary."""

    f1: float
    """Mean F1 over the features that fire: how well a feature's latent fires where the feature does.

    `moments.f1_of`, counted in tokens; 0 for a feature without a latent. Directions alone pair latents with features
    (`matching.match`). Source: Chanin and Garriga-Alonso 2026, arXiv:2602.14687, where the mean is over
    latents. Here a feature that nobody finds counts too."""
    mcc: float
    """Mean |cosine| of features and their latents' rows of W_dec, over the pairs (`Matching.mean`)."""
    found: float
    """Share of the firing features whose latent has an F1 above 0.5."""
    dead: float
    """Share of latents that fire on none of the tokens."""
    l0: float
    """Mean number of latents that fire per token."""
    fvu: float
    """Fraction of variance unexplained."""


class Recoveries(NamedTuple):
    """Recovery by a trained dictionary and by its references, on the same tokens."""

    trained: Recovery
    random: Recovery
    """Random unit rows: what no training finds."""
    true: Recovery
    """The features themselves as rows of W_enc and W_dec. A trained encoder may be better: where features overlap,
    knowing them is not telling them apart."""


@torch.no_grad()
def recovery(
    sae: Sae,
    directions: Float[Tensor, "features d_in"],
    x: Float[Tensor, "tokens d_in"],
    acts: Float[Tensor, "tokens width"],
    features: Int[Tensor, "tokens width"],
) -> Recovery:
    """What the dictionary makes of tokens x, in which the `features` with positive `acts` fire."""
    pairs = match(directions, sae.W_dec)
    latent_of = torch.full((len(directions),), sae.num_latents, device=sae.device)
    latent_of[torch.from_numpy(pairs.rows)] = torch.from_numpy(pairs.columns).to(sae.device)
    counts = torch.zeros(3, len(directions), dtype=torch.int64, device=sae.device)
    fired, error = torch.zeros(sae.num_latents + 1, device=sae.device), 0.0
    for tokens, true, which in zip(x.split(_PART), acts.split(_PART), features.split(_PART), strict=True):
        tokens = tokens.to(sae.device)
        code = sae.encode(tokens)
        error += float((sae.decode(*code, tokens) - tokens).double().square().sum())
        latents = which_fire(code.top_acts, code.top_indices, sae.num_latents + 1)  # the last stands for no latent
        there = which_fire(true.to(sae.device), which.to(sae.device), len(directions))
        fired += latents.sum(0)
        said = latents[:, latent_of]
        counts += torch.stack([(said & there).sum(0), said.sum(0), there.sum(0)])
    both, said_sum, there_sum = counts.double()
    fires = there_sum > 0
    f1 = f1_of(both, said_sum, there_sum)[fires]
    return Recovery(
        f1=f1.mean().item(),
        mcc=pairs.mean,
        found=(f1 > 0.5).double().mean().item(),
        dead=(fired[:-1] == 0).double().mean().item(),
        l0=fired.sum().item() / len(x),
        fvu=fvu(torch.tensor(error).double(), VarianceSums.of(x.double()).total_variance()).item(),
    )


def which_fire(acts: Float[Tensor, "tokens width"], indices: Int[Tensor, "tokens width"], columns: int) -> Tensor:
    """Which of the `columns` have a positive entry, (tokens, columns) bool."""
    dense = torch.zeros(len(acts), columns, dtype=torch.bool, device=acts.device)
    token, place = (acts > 0).nonzero(as_tuple=True)
    dense[token, indices[token, place]] = True
    return dense
