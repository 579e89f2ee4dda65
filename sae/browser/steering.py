"""Texts that a user types: which latents fire on them, and what the model does with latents changed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae import lm
from sae.data.tokenize import encode_once
from sae.dictionary.losses import divergence

from .reads import Read

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
    if source.ends:
        raise ValueError(
            f"a latent must write one hookpoint to be changed, and those of {place} write {len(source.ends)}: "
            "a text can be read here, and not be steered"
        )
    edit, saes = _edit_of(edits, maxima), {source.hookpoint: source.dictionary}
    clean = lm.full_logits(loaded.model, tokens)[0].float().log_softmax(-1)
    with lm.graft(loaded.model, saes, keep_error=True, edit=edit):
        changed = lm.full_logits(loaded.model, tokens)[0].float().log_softmax(-1)
    kl = divergence(clean, changed).nan_to_num().clamp_min(0)
    plain = _continue(loaded.model, tokens, new_tokens)
    with lm.graft(loaded.model, saes, keep_error=True, edit=edit):
        steered = _continue(loaded.model, tokens, new_tokens)
    return {"ids": tokens[0].tolist(), "kl": kl.tolist(), "clean": plain, "steered": steered}


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
