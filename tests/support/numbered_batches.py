"""A source of numbered batches."""

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PATIENCE = 30  # seconds


class Numbers:
    """Batches 0, 1, 2, …, and errors where there are some."""

    def __init__(self, count: int = 100, errors: dict[int, Exception] | None = None) -> None:
        self.num_batches = count
        self.position = 0
        self.errors = errors or {}
        self.changed = threading.Condition()

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if error := self.errors.pop(self.position, None):
            raise error
        if self.position == self.num_batches:
            raise StopIteration
        with self.changed:
            self.position += 1
            self.changed.notify_all()
        return torch.full((1, 2), self.position - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def wait_for(self, position: int) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.position == position, PATIENCE)
