"""Properties of a latent by its weights alone: direct effect on the logits, agreement of encoder and decoder."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sae import lm
from sae.ops.extremes import Columns, Extremes

from .layout import BINS, LOGITS, NONE
from .reads import Read

_ROWS = 2**12
"""Latents that are looked at together."""


def unit_rows(dictionary: Any) -> Iterator[np.ndarray]:
    """Rows of W_dec of unit length, float16, some after the other."""
    for rows in dictionary.W_dec.detach().split(2**14):
        yield F.normalize(rows.float(), dim=1).cpu().to(torch.float16).numpy()


class Logits:
    """Effects of latents on the logits of a model."""

    def __init__(self, unembedding: lm.Unembedding | None, device: torch.device) -> None:
        """Without an unembedding tokens are NONE."""
        matrix = None if unembedding is None else unembedding.matrix(device)
        self._columns = None if matrix is None else Columns(matrix, lm.compute_dtype(device))

    def of(self, decoder: Float[Tensor, "latents d"]) -> dict[str, np.ndarray]:
        """The LOGITS tokens that rows of W_dec move up and down most, and a histogram of all.

        Effects are those of an activation of 1, up to the final norm's factor 1 / ‖…‖, which depends on the token.
        Tokens are NONE for a decoder of another width than the model's.
        """
        columns, known = _no_logits(len(decoder)), self._columns
        if known is None or known.right.shape[1] != decoder.shape[1]:
            return columns
        found = Extremes(*(each.cpu() for each in known.extremes(decoder, LOGITS, BINS)))
        number = found.top.shape[1]
        for name, tokens, values in (("up", found.top_at, found.top), ("down", found.bottom_at, found.bottom)):
            columns[f"{name}_tokens"][:, :number] = tokens.numpy()
            columns[f"{name}_logits"][:, :number] = values.numpy()
        columns["logit_range"] = torch.stack([found.bottom[:, 0], found.top[:, 0]], dim=1).numpy()
        columns["logit_histogram"] = found.histogram.numpy().astype(np.uint32)
        return columns


class Effects:
    """Effects on the logits of a model, or of two."""

    def __init__(self, model: nn.Module, why_none: str = "") -> None:
        """With `why_none`, a sentence, the model has no weights."""
        self._model, self.why_none = model, why_none
        self._heads = {side: None if why_none else self._head(one) for side, one in lm.models_in(model).items()}
        self._known: dict[tuple[str, torch.device], Logits] = {}

    def _head(self, model: nn.Module) -> lm.Unembedding | None:
        try:
            return lm.find_unembedding(model)
        except lm.NoHeadError as error:
            self.why_none = str(error)
            return None

    def path(self, read: Read) -> str:
        """`direct` if the latents add to the residual stream, else `direct path only`."""
        side, effect = next(iter(read.towards_logits().items()))
        return lm.path_to_logits(lm.models_in(self._model)[side], effect.hookpoint)

    def logits(self, side: str, device: torch.device) -> Logits:
        """Effects on the logits of one model, on a device."""
        if (key := (side, device)) not in self._known:
            self._known[key] = Logits(self._heads[side], device)
        return self._known[key]


def decoder_columns(read: Read, effects: Effects) -> Iterator[dict[str, np.ndarray]]:
    """`alignment`, the cosine of a latent's encoder and decoder rows, and what it does to the logits.

    Of two models it is what it does in that in which its rows are longer.
    """
    W_dec, W_enc = read.dictionary.W_dec.detach(), read.dictionary.encoder.weight.detach()
    ways = read.towards_logits()
    lengths = torch.stack([read.lengths_in(side) for side in ways]) if len(ways) > 1 else None
    for start in range(0, len(W_dec), _ROWS):
        some = slice(start, start + _ROWS)
        found = [effects.logits(side, W_dec.device).of(effect.rows(some)) for side, effect in ways.items()]
        if lengths is not None:
            longest = lengths[:, some].argmax(0).cpu().numpy()
            found = [{name: _chosen([each[name] for each in found], longest) for name in found[0]}]
        yield {"alignment": _cosines(W_dec[some].float(), W_enc[some].float())} | found[0]


def _chosen(of_each: list[np.ndarray], which: np.ndarray) -> np.ndarray:
    """Row by row, that of the model of this number."""
    return np.stack(of_each)[which, np.arange(len(which))]


def _cosines(decoder: Tensor, encoder: Tensor) -> np.ndarray:
    """NaN where the two are of different spaces, as those of a transcoder may be."""
    if decoder.shape != encoder.shape:
        return np.full(len(decoder), np.nan, np.float32)
    return F.cosine_similarity(decoder, encoder, dim=1).cpu().numpy()


def _no_logits(latents: int) -> dict[str, np.ndarray]:
    tokens = {f"{name}_tokens": np.full((latents, LOGITS), NONE, np.uint32) for name in ("up", "down")}
    logits = {f"{name}_logits": np.zeros((latents, LOGITS), np.float32) for name in ("up", "down")}
    histogram = {"logit_histogram": np.zeros((latents, BINS), np.uint32)}
    return tokens | logits | histogram | {"logit_range": np.zeros((latents, 2), np.float32)}
