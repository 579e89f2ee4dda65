"""Encoder product and selection, chunk by chunk: the pre-activations of the whole batch never exist."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Memory for the pre-activations of one chunk of tokens."""


def chunk_tokens(num_latents: int, dtype: torch.dtype, chunk_bytes: int = CHUNK_BYTES) -> int:
    """How many tokens' pre-activations fit into `chunk_bytes`; at least 1."""
    return max(1, chunk_bytes // (num_latents * dtype.itemsize))


Select = Callable[[Tensor], tuple[Tensor, Tensor]]


def encode(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "latents d_in"],
    b_enc: Float[Tensor, "latents"],
    select: Select,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """select(x @ W_encᵀ + b_enc) for each token, without gradients.

    All three tensors have one dtype, in which the product is computed. `select` maps pre-activations (tokens, latents)
    to values and indices, both (tokens, k). Uses `chunk_bytes` of memory beside the result, or one token's worth.
    """
    num_latents = W_enc.shape[0]
    chunk = chunk_tokens(num_latents, x.dtype, chunk_bytes)
    buffer = x.new_empty(min(chunk, len(x)), num_latents)
    parts = []
    for rows in x.split(chunk):
        pre_acts = torch.mm(rows, W_enc.T, out=buffer[: len(rows)])
        parts.append(select(pre_acts.add_(b_enc)))
    values, indices = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(indices)
