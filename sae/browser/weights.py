"""Properties of a latent by its weights alone: direct effect on the logits, agreement of encoder and decoder."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sae import lm

from .layout import BINS, LOGITS, NONE

_ENTRIES = 2**24
"""Logits that exist at a time."""


def unit_rows(dictionary: Any) -> Iterator[np.ndarray]:
    """Rows of W_dec of unit length, float16, some after the other."""
    for rows in dictionary.W_dec.detach().split(2**14):
        yield F.normalize(rows.float(), dim=1).cpu().to(torch.float16).numpy()


def decoder_columns(dictionary: Any, unembedding: lm.Unembedding | None) -> Iterator[dict[str, np.ndarray]]:
    """`alignment`, the cosine of a latent's encoder and decoder rows, and what W_dec does to the logits.

    That is the LOGITS tokens that it moves up and down most, and a histogram of all.

    A logit effect is that of an activation of 1, up to the final norm's factor 1 / ‖…‖, which depends on the token.
    Without an unembedding, or with one of another width, tokens are NONE.
    """
    W_dec, W_enc = dictionary.W_dec.detach(), dictionary.encoder.weight.detach()
    fits = unembedding is not None and unembedding.W.shape[1] == W_dec.shape[1]
    vocab = len(unembedding.W) if unembedding is not None and fits else 0
    matrix = unembedding.matrix(W_dec.device) if unembedding is not None and fits else None
    for start in range(0, len(W_dec), rows := max(1, min(2**12, _ENTRIES // max(1, vocab)))):
        decoder, encoder = (W[start : start + rows].float() for W in (W_dec, W_enc))
        columns = {"alignment": _cosines(decoder, encoder)}
        if matrix is None:
            yield columns | _no_logits(len(decoder))
        else:
            yield columns | _logits(decoder @ matrix.T)


def _cosines(decoder: Tensor, encoder: Tensor) -> np.ndarray:
    """NaN where the two are of different spaces, as those of a transcoder may be."""
    if decoder.shape != encoder.shape:
        return np.full(len(decoder), np.nan, np.float32)
    return F.cosine_similarity(decoder, encoder, dim=1).cpu().numpy()


def _logits(effects: Float[Tensor, "latents vocab"]) -> dict[str, np.ndarray]:
    number = min(LOGITS, effects.shape[1])
    columns = _no_logits(len(effects))
    for name, largest in (("up", True), ("down", False)):
        values, tokens = effects.topk(number, dim=1, largest=largest)
        columns[f"{name}_tokens"][:, :number] = tokens.cpu().numpy()
        columns[f"{name}_logits"][:, :number] = values.cpu().numpy()
    ends = torch.stack(effects.aminmax(dim=1), dim=1)
    if not ends.isfinite().all():
        effects = effects.nan_to_num()
        ends = torch.stack(effects.aminmax(dim=1), dim=1)
    columns["logit_range"] = ends.cpu().numpy()
    columns["logit_histogram"] = torch.stack([row.histc(BINS) for row in effects]).cpu().numpy().astype(np.uint32)
    return columns


def _no_logits(latents: int) -> dict[str, np.ndarray]:
    tokens = {f"{name}_tokens": np.full((latents, LOGITS), NONE, np.uint32) for name in ("up", "down")}
    logits = {f"{name}_logits": np.zeros((latents, LOGITS), np.float32) for name in ("up", "down")}
    histogram = {"logit_histogram": np.zeros((latents, BINS), np.uint32)}
    return tokens | logits | histogram | {"logit_range": np.zeros((latents, 2), np.float32)}
