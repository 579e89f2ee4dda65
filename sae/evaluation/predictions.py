"""What changes in a model's predictions when its hidden states do, a few positions' logits at a time."""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae import lm
from sae.ops.native.logits import LogitRows, covers

Name = TypeVar("Name")

_IN_CACHE = 2**18
"""Logits of one thread that are compared at a time on a CPU."""
_GROUP = 256
"""Columns whose maximum is taken together."""


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
    """Predictions of `others`, the results of `head.run` by name, beside those of `clean`; and the clean cross-entropy.

    Sums are float32 or more. At most two chunks of logits are in memory: the clean run's and one other.
    """
    tokens = tokens.to(clean.states.device)
    targets = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)  # the last has none: it is set to 0 below
    chunk = lm.num_positions_per_chunk(len(tokens), vocab_size, tokens.device)
    parts: dict[Name, list[Predictions]] = {name: [] for name in others}
    clean_ce = []
    for start in range(0, tokens.shape[1], chunk):
        part = slice(start, start + chunk)
        logits = head.logits(tokens, clean, part)
        reference = (CompiledPredictions if covers(logits) else CleanPredictions).of(logits)
        clean_ce.append(reference.cross_entropy(targets[:, part]))
        for name, output in others.items():
            parts[name].append(reference.compare(head.logits(tokens, output, part), targets[:, part]))
        del reference, logits
    joined = {name: _joined(each) for name, each in parts.items()}
    ce = torch.cat(clean_ce, 1)
    ce[:, -1] = 0
    return joined, ce


class CleanPredictions(NamedTuple):
    """The clean model's predictions at a few positions."""

    logs: Float[Tensor, "*positions vocab"]
    """Logarithms of the probabilities."""
    probabilities: Float[Tensor, "*positions vocab"]
    likeliest: Int[Tensor, "*positions"]
    """The most likely token; of several the first."""

    @classmethod
    def of(cls, logits: Float[Tensor, "*positions vocab"]) -> "CleanPredictions":
        """Predictions from these logits."""
        logs = logits.float().log_softmax(-1)
        return cls(logs, logs.exp(), largest(logs))

    def cross_entropy(self, targets: Int[Tensor, "*positions"]) -> Float[Tensor, "*positions"]:
        """Nats, of the token that follows."""
        return _cross_entropy(self.logs, targets)

    def compare(self, logits: Float[Tensor, "batch part vocab"], targets: Int[Tensor, "batch part"]) -> Predictions:
        """Other predictions beside these; a few tokens at a time, which on a CPU stay in its cache."""
        vocab = logits.shape[-1]
        rows = max(1, _IN_CACHE * torch.get_num_threads() // vocab) if logits.is_cpu else max(1, targets.numel())
        of_tokens = (self.logs.flatten(0, 1), self.probabilities.flatten(0, 1), self.likeliest.flatten())
        tensors = (*of_tokens, logits.flatten(0, 1), targets.flatten())
        parts = [_compare_tokens(*some) for some in zip(*(tensor.split(rows) for tensor in tensors), strict=True)]
        return Predictions(*(torch.cat(part).view_as(targets) for part in zip(*parts, strict=True)))


class CompiledPredictions(NamedTuple):
    """`CleanPredictions` in C, which reads logits once and keeps no probabilities."""

    rows: LogitRows

    @classmethod
    def of(cls, logits: Float[Tensor, "*positions vocab"]) -> "CompiledPredictions":
        """Predictions from these logits."""
        return cls(LogitRows.of(logits.flatten(0, -2)))

    def cross_entropy(self, targets: Int[Tensor, "*positions"]) -> Float[Tensor, "*positions"]:
        """Nats, of the token that follows."""
        return self.rows.cross_entropy(targets.flatten()).view_as(targets)

    def compare(self, logits: Float[Tensor, "batch part vocab"], targets: Int[Tensor, "batch part"]) -> Predictions:
        """Other predictions beside these."""
        kl, others = self.rows.divergence(logits.flatten(0, 1))
        agree, ce = self.rows.largest == others.largest, others.cross_entropy(targets.flatten())
        return Predictions(*(each.view_as(targets) for each in (kl, agree, ce)))


def _joined(parts: list[Predictions]) -> Predictions:
    kl, agree, ce = (torch.cat(each, 1) for each in zip(*parts, strict=True))
    ce[:, -1] = 0
    return Predictions(kl, agree, ce)


def _compare_tokens(logs: Tensor, p: Tensor, likeliest: Tensor, logits: Tensor, targets: Tensor) -> Predictions:
    changed = logits.float().log_softmax(-1)
    agree, ce = likeliest == largest(changed), _cross_entropy(changed, targets)
    terms = changed.neg_().add_(logs).mul_(p)  # `losses.divergence` in place: a chunk is 1 GiB on a GPU
    kl = terms.sum(-1)
    if kl.isnan().any():  # a logit of -inf has probability 0 in both: it adds nothing
        kl = terms.masked_fill_(p == 0, 0).sum(-1)
    return Predictions(kl, agree, ce)


def largest(x: Float[Tensor, "*rows columns"]) -> Int[Tensor, "*rows"]:
    """Column of the largest value in each row, the first of several: `argmax`, on a CPU from the maxima of groups.

    There PyTorch's own takes longer than all else that is done to logits.
    """
    whole = x.shape[-1] // _GROUP * _GROUP
    if not x.is_cpu or not whole:
        return x.argmax(-1)
    first = x[..., :whole].unflatten(-1, (-1, _GROUP)).amax(-1).argmax(-1, keepdim=True) * _GROUP
    group = x.gather(-1, first + torch.arange(_GROUP))
    found = first.squeeze(-1) + group.argmax(-1)
    if whole == x.shape[-1]:
        return found
    rest, at = x[..., whole:].max(-1)
    return torch.where(rest > group.amax(-1), whole + at, found)


def _cross_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
