"""What predictions are compared by, in one pass over the logits each, in C."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.ops.native import COPIES, empty, library, over_rows


def covers(logits: Tensor) -> bool:
    """Whether C reads these: float32 or bf16, on a CPU, and there is a compiler."""
    return logits.is_cpu and logits.dtype in COPIES and not logits.requires_grad and library() is not None


class LogitRows(NamedTuple):
    """Logits, and what their softmax needs."""

    logits: Float[Tensor, "tokens vocab"]
    totals: Float[Tensor, "tokens"]
    """log Σ exp of each row, of its differences to its largest entry."""
    largest: Int[Tensor, "tokens"]
    """Column of the largest entry, the first of several."""

    @classmethod
    def of(cls, logits: Float[Tensor, "tokens vocab"]) -> "LogitRows":
        """The rows of these logits."""
        logits = logits.contiguous()
        found = cls(logits, empty(len(logits)), empty(len(logits), dtype=torch.int64))
        over_rows("log_totals", logits, (int(logits.dtype == torch.bfloat16), found.totals, found.largest))
        return found

    def cross_entropy(self, targets: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
        """−log of a target's probability, nats."""
        largest, wanted = (self.logits.gather(1, at.unsqueeze(1)).squeeze(1).float() for at in (self.largest, targets))
        return largest - wanted + self.totals

    def divergence(self, changed: Float[Tensor, "tokens vocab"]) -> tuple[Float[Tensor, "tokens"], "LogitRows"]:
        """KL of these predictions to others, KL(this ‖ changed), nats, and the others' rows.

        A probability below e⁻⁸⁷ here adds nothing. One that is 0 there alone makes it ∞.
        """
        changed = changed.contiguous()
        rows = LogitRows(changed, empty(len(changed)), empty(len(changed), dtype=torch.int64))
        kl = empty(len(changed))
        types = [int(each.dtype == torch.bfloat16) for each in (self.logits, changed)]
        over_rows("divergences", self.logits, (types[0], *self[1:], changed, types[1], kl, *rows[1:]))
        return kl, rows
