"""A store of given activations: what `SaeTrainer` reads where there is no language model and no cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sae.activations.source import Activations, Batch
from sae.activations.store import HeldOut

HOOKPOINT = "given"
SHOWN = 4096
"""Rows that stand for the held-out ones when a run looks at them first."""


class GivenRows:
    """Batches of rows, over and over, `num_batches` of them."""

    def __init__(self, rows: Tensor, tokens: int, num_batches: int, device: torch.device) -> None:
        self._rows, self._tokens, self._device = rows, tokens, device
        self.num_batches, self._index = num_batches, 0

    def __iter__(self) -> Iterator[Activations]:
        return self

    def __next__(self) -> Activations:
        start = self.skip_to_next() % (len(self._rows) - self._tokens + 1)
        return {HOOKPOINT: self._rows[start : start + self._tokens].to(self._device, torch.float32)}

    def skip_to_next(self) -> int:
        """Count a batch; where it would begin if there were rows without end. Raises StopIteration at the end."""
        if self._index == self.num_batches:
            raise StopIteration
        self._index += 1
        return (self._index - 1) * self._tokens

    def skip(self) -> int:
        """Pass over a batch; how many rows it has."""
        self.skip_to_next()
        return self._tokens

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"index": self._index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there."""
        self._index = state["index"]


class GivenStore(HeldOut):
    """`ActivationStore` of the rows of one hookpoint, (tokens, d_in); a batch is one sequence of `tokens`."""

    num_to_train = None
    model_name, data_seed, held_out, held_out_by = "given activations", 0, 1, "sequences"
    dtype = torch.float32

    def __init__(
        self, rows: Tensor, tokens: int, num_batches: int, device: torch.device, held_out: Tensor | None = None
    ) -> None:
        """`held_out` are rows that nobody trains on; None: the first of `rows`."""
        self._held_out, self.device = rows[:SHOWN] if held_out is None else held_out, device
        self.ctx_len, self.num_batches, self.num_sequences = tokens, num_batches, num_batches + 1
        self.chosen, self.widths = [HOOKPOINT], {HOOKPOINT: rows.shape[1]}
        self.read_with: dict[str, Any] = {}
        self.source = GivenRows(rows, tokens, num_batches, device)

    @property
    def batch_index(self) -> int:
        """How many batches were read."""
        return int(self.source.state_dict()["index"])

    def about_held_out(self) -> list[str]:
        """Nothing is known of what text they are."""
        return []

    def held_out_batches(self) -> Iterator[Batch]:
        """Rows that the trainer looks at before it begins, and calibrates on; the benchmark evaluates by itself."""
        for rows in self._held_out.split(SHOWN):
            shown = rows.to(self.device, torch.float32)
            yield Batch(torch.zeros(1, len(shown), dtype=torch.int64), torch.arange(len(shown)), {HOOKPOINT: shown})

    def fingerprints(self) -> dict[str, str]:
        """Nothing: such a run is never continued."""
        return {}
