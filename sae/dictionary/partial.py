"""Reconstructions by a part of a dictionary: its first latents, the largest of a token, or without its skip connection.

They show what Matryoshka's prefixes and Hierarchical's budgets were trained for, and what a skip connection hides.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionary.autoencoder import Sae
from sae.dictionary.levels import Levels


def partial_names(sae: Sae) -> list[str]:
    """Names of the parts: "first 512" latents, "top 8" of each token, or all "without skip".

    Parts of a cross-layer transcoder are parts of all its layers together, whose skip connections stay.
    """
    levels = _levels(sae)
    word = "top" if sae.cfg.budgets else "first"
    ends = [] if levels is None else [f"{word} {end}" for end in levels.ends[:-1]]
    return ends + ["without skip"] * _without_skip(sae)


def _levels(sae: Sae) -> Levels | None:
    return Levels.of(sae.cfg, sae.num_latents * sae.shards.parts, sae.cfg.k)


def _without_skip(sae: Sae) -> bool:
    return sae.W_skip is not None and not sae.cfg.cross_layer


def acts_at_levels(
    sae: Sae, top_acts: Float[Tensor, "*batch width"], top_indices: Int[Tensor, "*batch width"]
) -> list[Float[Tensor, "*batch width"]]:
    """The activations that each nested reconstruction but the whole one takes, 0 for the others."""
    levels = _levels(sae)
    if levels is None:
        return []
    width = top_acts.shape[-1]
    level = levels.at(top_acts.reshape(-1, width), top_indices.reshape(-1, width), sae.shards).view(top_acts.shape)
    return [top_acts * (level <= index) for index in range(len(levels.ends) - 1)]


def partial_reconstructions(
    sae: Sae,
    top_acts: Float[Tensor, "*batch width"],
    top_indices: Int[Tensor, "*batch width"],
    x: Float[Tensor, "*batch d_in"] | None = None,
    *,
    whole: Float[Tensor, "*batch d_out"],
) -> dict[str, Float[Tensor, "*batch d_out"]]:
    """Reconstructions of a code by each part, in the order of `partial_names`.

    `x` is what was encoded, for `Sae.decode`; `whole` is the whole dictionary's reconstruction.
    """
    names = iter(partial_names(sae))
    found = {next(names): sae.decode(acts, top_indices, x) for acts in acts_at_levels(sae, top_acts, top_indices)}
    if _without_skip(sae) and sae.W_skip is not None and x is not None:
        skip = (x.to(sae.dtype) @ sae.W_skip.T).view(*top_acts.shape[:-1], sae.d_out)
        found[next(names)] = whole - sae.unscaled(skip)
    return found


@torch.no_grad()
def partial_errors(
    recons: dict[str, Float[Tensor, "*batch d"]], y: Float[Tensor, "*batch d"], counts: Float[Tensor, "*batch"]
) -> Float[Tensor, "parts"]:
    """Σ ‖x̂ − y‖² over tokens, each as often as it counts, for each reconstruction; float64."""
    each = [torch.where(counts > 0, (x - y).square().sum(-1), 0).double().mul(counts).sum() for x in recons.values()]
    return torch.stack(each) if each else torch.zeros(0, dtype=torch.float64, device=y.device)
