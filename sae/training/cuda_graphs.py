"""Work on a GPU that is recorded once, as a CUDA graph, and then replayed.

A step is some 300 small operations. Python needs longer to ask for them than the GPU needs to do them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before the recording, in which kernels are compiled and libraries take their memory."""

T = TypeVar("T")

_pools: dict[torch.device, tuple[Any, "WeakSet[Recorded[Any]]"]] = {}
"""Memory of a device's recordings, and the recordings in it. They share what each needs only meanwhile."""


class Recorded(Generic[T]):
    """A function without arguments, which after `WARM_UP` calls is replayed instead of called.

    It must do the same to the same tensors in every call. It reads and writes them in place, waits for nothing, and
    changes nothing in Python. Every replay fills the tensors that the recorded call returned. They are kept while other
    recordings are replayed; temporary memory is not.
    """

    def __init__(self, work: Callable[[], T], device: torch.device) -> None:
        self._work, self._device = work, device
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> T:
        """Do the work, or have it done again."""
        if self._calls < WARM_UP:
            self._calls += 1
            return self._work()
        with torch.cuda.device(self._device):
            if self._graph is None:
                self._graph = self._record()
            self._graph.replay()
        return self._result

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        if (
            self._device not in _pools or not _pools[self._device][1]
        ):  # with the last recording its memory is given back
            _pools[self._device] = torch.cuda.graph_pool_handle(), WeakSet()
        pool, inside = _pools[self._device]
        # Other threads may copy to or from the device meanwhile: a checkpoint is written, the next tokens are read.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._result = self._work()
        inside.add(self)
        return graph


class StepRecording:
    """The two halves of an optimizer step, recorded for steps of one shape."""

    def __init__(self, differentiate: Callable[[Tensor], T], descend: Callable[[], None]) -> None:
        """`differentiate` is given the same tensor in every call, and `descend` follows it, as `Recorded` asks."""
        self._differentiate, self._descend = differentiate, descend
        self._halves: tuple[Tensor, Recorded[Any], Recorded[None]] | None = None
        self._begun = False

    def drop(self) -> None:
        """Forget the recording: what it reads was replaced."""
        self._halves, self._begun = None, False

    def begin(self, x: Tensor) -> Callable[[], Any] | None:
        """The first half, on these activations; None for other shapes than that of the first call."""
        if self._halves is None:
            into = torch.empty_like(x)
            first, second = partial(self._differentiate, into), self._descend
            self._halves = into, Recorded(first, x.device), Recorded(second, x.device)
        into, first_half, _ = self._halves
        if (into.shape, into.dtype) != (x.shape, x.dtype):
            return None
        into.copy_(x)
        self._begun = True
        return first_half

    def end(self) -> Callable[[], None] | None:
        """The second half of the step whose first was begun here; None if it was not."""
        begun, self._begun = self._begun, False
        return self._halves[2] if begun and self._halves is not None else None
