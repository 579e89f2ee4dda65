"""The first activations of some data, for decisions that come before all of it is read."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from sae import lm
from sae.activations.source import Activations


def first_activations(
    model: nn.Module,
    hookpoints: Sequence[str],
    batches: Iterable[tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]],
    tokens: int,
) -> Activations:
    """Activations (tokens, d_in), float32, of the first whole sequences with at least so many tokens that count.

    `batches` hold token ids and which of them count. The result does not depend on the batches' size. No sequence, no
    activations.
    """
    found: dict[str, list[Tensor]] = {hookpoint: [] for hookpoint in hookpoints}
    left = tokens
    for ids, kept in batches:
        enough = int((kept.sum(1).cumsum(0) < left).sum()) + 1  # sequences
        ids, kept = ids[:enough], kept[:enough]
        for hookpoint, acts in lm.harvest(model, ids, list(hookpoints)).items():
            found[hookpoint].append(acts[kept.to(acts.device)].float())
        left -= int(kept.sum())
        if left <= 0:
            break
    return {hookpoint: torch.cat(parts) for hookpoint, parts in found.items() if parts}
