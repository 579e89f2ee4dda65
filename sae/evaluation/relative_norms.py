"""Shares of a crosscoder's hookpoints in the norms of its latents."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionary.autoencoder import Sae

BINS = 10


def relative_norms(sae: Sae) -> Float[Tensor, "hookpoints latents"]:
    """‖W_dec[i] at the hookpoint‖ / Σ over hookpoints ‖W_dec[i] there‖, in the units in which all count alike.

    Source: Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing", of two models.
    """
    norms = [torch.linalg.vector_norm(sae.W_dec.detach()[:, part], dim=1) for part in sae.spec.parts.values()]
    stacked = torch.stack(norms)
    return stacked / stacked.sum(0)


def histogram(sae: Sae, fired: Int[Tensor, "latents"], part: slice) -> list[int]:
    """Latents that fired, by their relative norm at one hookpoint, in bins from 0 to 1."""
    index = list(sae.spec.parts.values()).index(part)
    shares = relative_norms(sae)[index].cpu()[fired.cpu() > 0]
    return torch.histc(shares.float(), BINS, 0, 1).long().tolist()
