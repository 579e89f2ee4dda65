"""A source of data that fails for a while, as networks do: try again, wait longer each time, and stop in the end."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

PAUSES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Seconds between tries: eight and a half minutes in all."""

LIBRARIES = {"http", "httpx", "httpx2", "urllib3", "requests", "aiohttp", "botocore", "fsspec"}
PERMANENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
WORTH_A_TRY = {408, 425, 429}  # of the statuses 4xx: too slow, too early, too many requests

Value = TypeVar("Value")
Wait = Callable[[float], bool | None]
"""Sleeps so many seconds; true if there is no more time, because the run is to stop."""

logger = logging.getLogger(__name__)


class SourceError(OSError):
    """The data cannot be read; the message is one line."""


def patiently(read: Callable[[], Value], wait: Wait = time.sleep) -> Value:
    """What `read` returns, tried again after errors of network and disk, with a line in the log for each.

    `read` must change nothing when it raises. Raises SourceError when the last try failed, when `wait` says to stop, or
    at once for an answer that will not change, such as 404. Other errors pass as they are.
    """
    for tried, pause in enumerate((*PAUSES, None), start=1):
        try:
            return read()
        except Exception as error:
            if not _is_about_the_source(error):
                raise
            reason = f"{type(error).__name__}: {error}".strip().split("\n")[0][:200]
            if pause is None or not _may_pass(error):
                raise SourceError(f"the data cannot be read ({reason}), tried {tried} times") from error
            logger.warning("the data cannot be read (%s); trying again in %d s", reason, pause)
            if wait(pause):
                raise SourceError(f"the data cannot be read ({reason}), and the run is to stop") from error
    raise AssertionError("unreachable")


def _is_about_the_source(error: Exception) -> bool:
    """Errors of the operating system and of the libraries that fetch, which need not be installed."""
    origins = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(origins & LIBRARIES)


def _may_pass(error: Exception) -> bool:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", getattr(error, "status", None))
    if isinstance(status, int) and 400 <= status < 500:
        return status in WORTH_A_TRY
    return not isinstance(error, PERMANENT)
