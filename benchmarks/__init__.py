"""Measurements of this library beside its peers: `README.md` says which command makes which table."""

import os
import sys
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent
ROOT = HERE.parent
"""The checkout, from which every command here is run: `python -m benchmarks.speed`."""
RESULTS = HERE / "results"
CACHE = HERE / ".cache"
"""Text, activations and models, made once."""


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say what ended a command here, unless the reader of its output, such as head, had enough."""
    if issubclass(kind, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # so it is while Python looks for the module of `python -m benchmarks…`
    sys.excepthook = _told
