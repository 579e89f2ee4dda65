"""eai-sparsify's `Trainer.fit` with its own defaults, in a process of its own: `benchmarks.as_typed.peer JOB`.

It runs in the current folder, saves where it does by default, and writes times.json: when each batch began and when the
last was done, on the clock of `time.time`.
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch
from sparsify import SaeConfig, TrainConfig, Trainer
from torch import Tensor

DEAD_SHARE = 20
"""A latent counts as dead that did not fire in the last such part of the run."""


class TimedRows:
    """Rows of token ids; when a batch is asked for, the time is kept."""

    def __init__(self, rows: np.ndarray, batch_size: int) -> None:
        self._rows, self._batch_size = torch.from_numpy(rows), batch_size
        self.begun: list[float] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index % self._batch_size == 0:
            self.begun.append(time.time())
        return {"input_ids": self._rows[index]}


class GivenRows(TimedRows):
    """Activations in the place of a language model's, which cost nothing; ids only say how many tokens there are."""

    def __init__(self, path: str, d_in: int, tokens: int) -> None:
        from benchmarks.peers.sparsify import GivenActivations

        self._file, self._d_in = open(path, "rb", buffering=0), d_in  # mapped pages would count as memory
        super().__init__(np.zeros((os.path.getsize(path) // (2 * d_in * tokens), tokens), dtype=np.int64), 1)
        self.model = GivenActivations(d_in, "cpu")

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = super().__getitem__(index)
        size = len(row["input_ids"]) * self._d_in
        self._file.seek(2 * size * index)
        values = torch.from_numpy(np.fromfile(self._file, np.int16, size)).view(torch.bfloat16)
        self.model.activations = values.view(1, -1, self._d_in)
        return row


class TimedTrainer(Trainer):
    """Their trainer; when it begins to save for the last time, it has trained."""

    trained = 0.0

    def save(self) -> None:
        self.trained = time.time()
        super().save()


def main() -> None:
    """Train as the job says: `model` and `rows`, or `activations` and `d_in`."""
    job: dict[str, Any] = json.loads(sys.argv[1])
    batch = job["batch_size"] * job["ctx_len"]
    if "activations" in job:
        rows: TimedRows = (given := GivenRows(job["activations"], job["d_in"], batch))
        trainer = TimedTrainer(TrainConfig(_sae(job), batch_size=1), given, given.model)
    else:
        from transformers import AutoModel

        model = AutoModel.from_pretrained(job["model"], dtype=torch.bfloat16)
        rows = TimedRows(np.load(job["rows"]), job["batch_size"])
        trainer = TimedTrainer(TrainConfig(_sae(job), batch_size=job["batch_size"], layers=job["layers"]), rows, model)
    trainer.fit()
    tokens = len(rows.begun) * batch
    dead = {
        name: (since > tokens // DEAD_SHARE).float().mean().item()
        for name, since in trainer.num_tokens_since_fired.items()
    }
    times = {"begun": rows.begun, "trained": trainer.trained, "tokens_per_batch": batch, "dead": dead}
    with open("times.json", "w") as file:
        json.dump(times, file)


def _sae(job: dict[str, Any]) -> SaeConfig:
    factor = job["expansion_factor"]
    return SaeConfig() if factor is None else SaeConfig(expansion_factor=factor)


if __name__ == "__main__":
    main()
