"""Texts that a user types: which latents fire on them, and what the model does with latents changed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae import lm
from sae.data.tokenize import encode_once
from sae.dictionary.losses import divergence
from sae.dictionary.wiring import ARROW

from .reads import End, Read

MOST_TOKENS = 512
LATENTS_OF_TOKEN = 12


class Loaded(NamedTuple):
    """The model with its head, its tokenizer, and the dictionaries by place."""

    model: nn.Module
    tokenizer: Any
    reads: dict[str, Read]


@torch.no_grad()
def read(loaded: Loaded, text: str, place: str) -> dict[str, Any]:
    """The strongest latents of each token of a text."""
    tokens, source = _tokens(loaded, text), loaded.reads[place]
    x = source.of(lm.harvest(loaded.model, tokens, list(source.reads)))[0]
    acts, indices = source.dictionary.encode(x.to(source.dictionary.W_dec.device).float())
    order = acts.argsort(dim=1, descending=True)[:, :LATENTS_OF_TOKEN]
    rows = zip(acts.gather(1, order).tolist(), indices.gather(1, order).tolist(), strict=True)
    latents = [[[at, act] for act, at in zip(*row, strict=True) if act > 0] for row in rows]
    return {"ids": tokens[0].tolist(), "latents": latents}


@torch.no_grad()
def steer(
    loaded: Loaded, text: str, place: str, edits: list[dict[str, Any]], maxima: Any, new_tokens: int
) -> dict[str, Any]:
    """The most likely continuation, clean and changed, and how far the changed predictions are from the clean ones.

    An edit adds `strength` times the latent's maximum on every token; strength None ablates it. KL, in nats, is
    KL(clean ‖ changed) of the next token after each token of the text.
    """
    tokens, source = _tokens(loaded, text), loaded.reads[place]
    edit, saes = _edit_of(edits, maxima), _to_graft(source, place)
    clean = lm.full_logits(loaded.model, tokens)[0].float().log_softmax(-1)
    with lm.graft(loaded.model, saes, keep_error=True, edit=edit):
        changed = lm.full_logits(loaded.model, tokens)[0].float().log_softmax(-1)
    kl = divergence(clean, changed).nan_to_num().clamp_min(0)
    plain = _continue(loaded.model, tokens, new_tokens)
    with lm.graft(loaded.model, saes, keep_error=True, edit=edit):
        steered = _continue(loaded.model, tokens, new_tokens)
    return {"ids": tokens[0].tolist(), "kl": kl.tolist(), "clean": plain, "steered": steered}


def _to_graft(source: Read, place: str) -> dict[str, Any]:
    """What writes a place's latents, by hookpoint; a layer of a cross-layer transcoder writes several."""
    if not source.ends:
        return {source.hookpoint: source.dictionary}
    if source.dictionary.cfg.crosscode:
        raise ValueError(
            f"a latent must add to what the model computes to be changed, and those of the crosscoder {place} say what "
            f"{len(source.ends)} hookpoints hold: a text can be read here, and not be steered"
        )
    return {f"{source.reads[0]}{ARROW}{end.hookpoint}": _AtEnd(source.dictionary, end) for end in source.ends}


class _AtEnd:
    """A layer of a cross-layer transcoder as one that writes a single hookpoint."""

    reads_input, decodes_with_input = True, False

    def __init__(self, dictionary: Any, end: End) -> None:
        self.encode, self.num_latents, self._rows = dictionary.encode, dictionary.num_latents, end.rows

    def decode(self, top_acts: Tensor, top_indices: Tensor) -> Tensor:
        """The sum of what the latents write there."""
        rows = self._rows(top_indices.flatten()).view(*top_indices.shape, -1)
        written: Tensor = torch.einsum("...k,...kd->...d", top_acts, rows)
        return written


def _tokens(loaded: Loaded, text: str) -> Tensor:
    if loaded.tokenizer is None:
        raise ValueError("a text can be read only with the model's tokenizer, and it has none")
    limit = min(MOST_TOKENS, lm.context_limit(loaded.model) or MOST_TOKENS)
    ids = encode_once(loaded.tokenizer, [text])[0][:limit]
    if not ids:
        raise ValueError("the text must have a token")
    return torch.tensor([ids])


def _edit_of(edits: list[dict[str, Any]], maxima: Any) -> Callable[[lm.Latents], None]:
    def edit(latents: lm.Latents) -> None:
        for each in edits:
            latent, strength = each["latent"], each["strength"]
            if strength is None:
                latents[latent] = 0
            else:
                latents[latent] += strength * float(maxima[latent])

    return edit


def _continue(model: nn.Module, tokens: Tensor, number: int) -> list[int]:
    """The most likely next tokens."""
    found = tokens
    for _ in range(number):
        following = lm.full_logits(model, found)[:, -1].argmax(-1, keepdim=True)
        found = torch.cat([found, following.to(found)], 1)
    return found[0, tokens.shape[1] :].tolist()
