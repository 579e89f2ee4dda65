"""Read tokens while the device trains: a stream has to be fetched and tokenised, and training should not wait."""

import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Any, NamedTuple

from torch import Tensor

from sae.data.source import TokenSource

BATCHES_AHEAD = 8
SECONDS_TO_END = 2.0


class _Read(NamedTuple):
    """A batch, None at the end, and the position after it."""

    tokens: Tensor | None
    position: dict[str, Any]


_Wanted = SimpleQueue[tuple[int, Future[_Read]] | None]
"""Requests, each with the number of the attempt that it belongs to; None: nothing more."""


class ReadAhead:
    """The batches of `batches`, up to eight of which a thread has ready before they are asked for.

    The position is that after the batch handed out last, so a restart loses nothing of what was read ahead. An error is
    raised where the batch that it prevented was asked for, and asking again tries again.
    """

    def __init__(self, batches: TokenSource) -> None:
        """From here on nobody else may read from `batches`; its held-out sequences may be read after the first batch
        was, or a position asked for."""
        self._batches = batches
        self._wanted: _Wanted = SimpleQueue()
        self._coming: deque[Future[_Read]] = deque()
        self._attempt = 0
        self._position: dict[str, Any] | None = None
        # A daemon, because a process that ends need not wait for a network that does not answer.
        reader = Thread(target=_serve, args=(batches, self._wanted), name="tokens", daemon=True)
        weakref.finalize(self, _end, self._wanted, reader)
        reader.start()

    @property
    def num_batches(self) -> int | None:
        """Batches in the whole pass; None if unknown."""
        return self._batches.num_batches

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        while len(self._coming) <= BATCHES_AHEAD:
            self._coming.append(Future())
            self._wanted.put((self._attempt, self._coming[-1]))
        try:
            tokens, self._position = self._coming[0].result()
        except Exception:
            self._forget()
            raise
        self._coming.popleft()
        if tokens is None:
            self._forget()
            raise StopIteration
        return tokens

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed out."""
        if self._position is None:
            self._position = self._batches.state_dict()
        return self._position

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position of a `state_dict`."""
        self._forget()
        self._batches.load_state_dict(state)
        self._position = None

    def _forget(self) -> None:
        """Wait for what is being read, and let it go."""
        for each in self._coming:
            each.cancel()
        for each in self._coming:
            if not each.cancelled():
                each.exception()
        self._coming.clear()
        self._attempt += 1


def _serve(batches: TokenSource, wanted: _Wanted) -> None:
    """Read what is wanted; after an error nothing more of the same attempt, so that no batch is passed over."""
    failed, error = -1, None
    while (request := wanted.get()) is not None:
        attempt, future = request
        if not future.set_running_or_notify_cancel():
            continue
        try:
            if attempt == failed and error is not None:
                raise error
            future.set_result(_Read(next(batches, None), batches.state_dict()))
        except BaseException as now:
            failed, error = attempt, now
            future.set_exception(now)


def _end(wanted: _Wanted, reader: Thread) -> None:
    """End the thread. Wait a little: one that is stopped in the middle of a library may take the process along."""
    with suppress(Empty):
        while True:
            wanted.get_nowait()
    wanted.put(None)
    if reader is not current_thread():  # the garbage collector runs anywhere
        reader.join(SECONDS_TO_END)
