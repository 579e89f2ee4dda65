"""What changes in a model's predictions when its hidden states do, a few positions' logits at a time."""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae import lm

Name = TypeVar("Name")


class Predictions(NamedTuple):
    """One forward's predictions beside those of the clean model, token by token."""

    kl: Float[Tensor, "batch seq"]
    """KL(clean ‖ this), nats."""
    agree: Bool[Tensor, "batch seq"]
    """Both have the same most likely next token."""
    ce: Float[Tensor, "batch seq"]
    """Cross-entropy of the token that follows, nats; 0 at the last position, where none does."""


def compare_predictions(
    head: lm.Head, tokens: Int[Tensor, "batch seq"], clean: lm.Hidden, others: Mapping[Name, lm.Hidden], vocab_size: int
) -> tuple[dict[Name, Predictions], Float[Tensor, "batch seq"]]:
    """Predictions of `others`, what `head.run` made, by name, beside those of `clean`; and the clean cross-entropy.

    Logits are float32. Of all that is as large as the vocabulary, one chunk's clean and one other exist at a time.
    """
    tokens = tokens.to(clean.states.device)
    targets = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)  # the last has none: it is set to 0 below
    chunk = lm.num_positions_per_chunk(len(tokens), vocab_size, tokens.device)
    parts: dict[Name, list[Predictions]] = {name: [] for name in others}
    clean_ce = []
    for start in range(0, tokens.shape[1], chunk):
        part = slice(start, start + chunk)
        reference = head.logits(tokens, clean, part).float().log_softmax(-1)
        clean_ce.append(_cross_entropy(reference, targets[:, part]))
        for name, output in others.items():
            changed = head.logits(tokens, output, part).float().log_softmax(-1)
            parts[name].append(_compare(reference, changed, targets[:, part]))
            del changed
        del reference
    joined = {name: _joined(each) for name, each in parts.items()}
    ce = torch.cat(clean_ce, 1)
    ce[:, -1] = 0
    return joined, ce


def _joined(parts: list[Predictions]) -> Predictions:
    kl, agree, ce = (torch.cat(each, 1) for each in zip(*parts, strict=True))
    ce[:, -1] = 0
    return Predictions(kl, agree, ce)


def _compare(reference: Tensor, changed: Tensor, targets: Tensor) -> Predictions:
    agree = reference.argmax(-1) == changed.argmax(-1)
    ce = _cross_entropy(changed, targets)
    p = reference.exp()
    # A logit of -inf has probability 0 in both: it adds nothing.
    kl = changed.neg_().add_(reference).mul_(p).masked_fill_(p == 0, 0).sum(-1)
    return Predictions(kl, agree, ce)


def _cross_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
