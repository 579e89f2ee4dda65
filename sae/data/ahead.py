"""Read tokens while the device trains: a stream has to be fetched and tokenised, and nobody should wait for it."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from sae.data.activations import TokenSource

BATCHES_AHEAD = 8


class ReadAhead:
    """The batches of `batches`, up to eight of which a thread has ready before they are asked for.

    The place is that after the batch handed out last, so that a restart loses nothing of what was read ahead. An error
    is raised where the batch that it prevented was asked for, and asking again tries again.
    """

    def __init__(self, batches: TokenSource) -> None:
        """From here on nobody else may read from `batches`; its held-out sequences may be read after the first batch
        was, or a place asked for."""
        self._batches = batches
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokens")
        self._coming: deque[Future[tuple[Tensor | None, dict[str, Any]]]] = deque()
        self._error: Exception | None = None
        self._place: dict[str, Any] | None = None

    @property
    def num_batches(self) -> int | None:
        """Batches in the whole pass; None if nobody knows."""
        return self._batches.num_batches

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        while len(self._coming) <= BATCHES_AHEAD:
            self._coming.append(self._reader.submit(self._read))
        try:
            tokens, self._place = self._coming[0].result()
        except Exception:
            self._forget()
            raise
        self._coming.popleft()
        if tokens is None:
            self._forget()
            raise StopIteration
        return tokens

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was handed out."""
        if self._place is None:
            self._place = self._batches.state_dict()
        return self._place

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place of a `state_dict`."""
        self._forget()
        self._batches.load_state_dict(state)
        self._place = None

    def _read(self) -> tuple[Tensor | None, dict[str, Any]]:
        """The next batch and the place behind it; after an error the same error, so that no batch is passed over."""
        if self._error is not None:
            raise self._error
        try:
            return next(self._batches, None), self._batches.state_dict()
        except Exception as error:
            self._error = error
            raise

    def _forget(self) -> None:
        """Wait for what is being read, and let it go."""
        for each in self._coming:
            each.cancel()
        for each in self._coming:
            if not each.cancelled():
                each.exception()
        self._coming.clear()
        self._error = None
