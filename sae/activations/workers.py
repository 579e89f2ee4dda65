"""Processes that share work, as rooms see them that do not know how processes talk."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Workers(Protocol):
    """Processes that share work. `World` is one kind."""

    rank: int
    size: int

    def together(self) -> AbstractContextManager[None]:
        """A block that may fail on one rank only: then all leave it with an error. They wait for each other."""

    def from_main(self, make: Callable[[], Any]) -> Any:
        """The result of `make`, which the main process alone calls, on all processes; they wait for it."""

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every rank, on every rank."""

    def add_up(self, tensors: Iterable[Tensor]) -> Callable[[], None]:
        """Start to add up all ranks' tensors, in place; the result waits for it."""


class OneWorker:
    """One process, which does all of it."""

    rank, size = 0, 1

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def from_main(self, make: Callable[[], Any]) -> Any:
        return make()

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def add_up(self, tensors: Iterable[Tensor]) -> Callable[[], None]:
        return lambda: None


ONE_WORKER = OneWorker()
