"""Encoder product and selection, chunk by chunk: the pre-activations of the whole batch never exist."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

import sae.ops.exact as exact
from sae.ops.topk import TopK

CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 256 * 2**20}
"""Memory for the pre-activations of one chunk of tokens. On a CPU they stay in the third-level cache between product
and selection, while a product of few tokens is slow. With 18,432 latents, 4096 tokens, bf16 and two cores of a Xeon
with AMX they take 75 ms; 87 with 12 MiB, 94 with 48."""

Select = Callable[[Tensor], tuple[Tensor, Tensor]]

Encode = Callable[[Tensor, Tensor, Tensor, Select], tuple[Tensor, Tensor]]
"""`encode`, or an approximation of it: (x, W_enc, b_enc, select) -> values, indices."""


def chunk_tokens(num_latents: int, like: Tensor, chunk_bytes: int | None = None) -> int:
    """Tokens whose pre-activations, in the type and on the device of `like`, make a chunk; a multiple of 64."""
    budget = chunk_bytes or CHUNK_BYTES.get(like.device.type, CHUNK_BYTES["cuda"])
    return max(64, budget // (num_latents * like.element_size()) // 64 * 64)


def encode(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "latents d_in"],
    b_enc: Float[Tensor, "latents"],
    select: Select,
    *,
    chunk_bytes: int | None = None,
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """select(x @ W_encᵀ + b_enc) for each token, without gradients.

    All three tensors have one dtype, in which the product is computed. `select` maps pre-activations (tokens, latents)
    to values and indices, both (tokens, k). Uses about `chunk_bytes` of memory beside the result, or 64 tokens' worth.
    """
    num_latents = W_enc.shape[0]
    if isinstance(select, TopK) and exact.covers(x, W_enc, b_enc, select.k):
        like = x.new_empty(0, dtype=torch.bfloat16)
        return select.of(*exact.encode(x, W_enc, b_enc, select.k, chunk_tokens(num_latents, like, chunk_bytes)))
    chunk = chunk_tokens(num_latents, x, chunk_bytes)
    buffer = x.new_empty(min(chunk, len(x)), num_latents)
    parts = []
    for rows in x.split(chunk):
        parts.append(select(torch.addmm(b_enc, rows, W_enc.T, out=buffer[: len(rows)])))
    width = max((values.shape[1] for values, _ in parts), default=0)
    values, indices = zip(*(_widened(part, width) for part in parts), strict=True)
    return torch.cat(values), torch.cat(indices)


def _widened(part: tuple[Tensor, Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Values and indices with zeros up to `width`, for a selection whose width depends on the tokens."""
    missing = width - part[0].shape[1]
    return part if missing == 0 else (F.pad(part[0], (0, missing)), F.pad(part[1], (0, missing)))
