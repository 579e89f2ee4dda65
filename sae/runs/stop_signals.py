"""Ctrl-C and SIGTERM as a request to stop at the next step, so that the state can be saved."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPING = (
    "stopping after this step, then the run is saved; "
    "press Ctrl-C again to end at once, without what came since the last checkpoint"
)


class StopRequests:
    """Inside `with`, the first signal makes the object true and tells the user; the second raises KeyboardInterrupt."""

    def __init__(self, *, silent: bool = False) -> None:
        """`silent`: another process tells the user."""
        self._requested, self._silent = False, silent
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self._requested

    def wait(self, seconds: float) -> bool:
        """Sleep so long, or until a signal comes; whether one has come."""
        end = time.monotonic() + seconds
        while not self and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return bool(self)

    def __enter__(self) -> "StopRequests":
        # Only the main thread may set handlers; elsewhere, as in a notebook's worker, signals keep their meaning.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            self._restore()
            raise KeyboardInterrupt
        self._requested = True
        if not self._silent:
            _tell(STOPPING)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _tell(line: str) -> None:
    """Write a line, below a progress bar, from the middle of anything.

    A handler may interrupt a print, so it writes past the buffer that this one holds. A terminal that is gone, or a
    full disk, is no reason to stop worse.
    """
    text = f"\n{line}\n"
    with suppress(OSError, ValueError, AttributeError):
        try:
            descriptor = sys.stderr.fileno()
        except OSError:  # in a notebook
            sys.stderr.write(text)
        else:
            os.write(descriptor, text.encode())
