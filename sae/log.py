"""Where metrics go: a progress bar, metrics.jsonl, Weights & Biases. A sink never changes training."""

import importlib.util
import json
import netrc
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from tqdm import tqdm

_MAX_LINE_BYTES = 2**22

Record = dict[str, float]
"""Metrics of one log step: `step`, `tokens`, and `<hookpoint>/<metric>`."""


@runtime_checkable
class Sink(Protocol):
    """A place for metrics."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Finish; called once, also after an error."""


class JsonLines:
    """Appends records to a file, one JSON object a line, each on disk when `write` returns."""

    def __init__(self, path: Path, *, keep_until_step: int = 0) -> None:
        """Records of later steps are dropped: a run that is resumed writes them again."""
        kept = [record for record in read_records(path) if record["step"] <= keep_until_step]
        partial = path.with_name(f".{path.name}.partial")  # a crash here leaves the old file
        partial.unlink(missing_ok=True)
        self._file = partial.open("x", encoding="utf-8", buffering=1)
        for record in kept:
            self.write(record)
        partial.replace(path)

    def write(self, record: Record) -> None:
        """Append one line."""
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_records(path: Path) -> list[Record]:
    """The records of a metrics.jsonl, without lines that are none, as one that was cut off. No file, no records."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(_MAX_LINE_BYTES), b"")
        return [record for record in map(_record, lines) if record is not None]


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or "step" not in record:
        return None
    return record if all(type(value) in (int, float) for value in record.values()) else None


class WandbSink:
    """Sends records to Weights & Biases."""

    def __init__(self, *, name: str, config: dict[str, Any], folder: Path) -> None:
        import wandb

        self._run = wandb.init(
            project="sae", name=name, config=config, dir=str(folder), settings=wandb.Settings(silent=True)
        )

    def write(self, record: Record) -> None:
        """Log one record at its step."""
        self._run.log(record, step=int(record["step"]))

    def close(self) -> None:
        """Upload what is left."""
        self._run.finish()


def why_no_wandb() -> str | None:
    """Why Weights & Biases cannot be used without a question to the user; None if it can."""
    if importlib.util.find_spec("wandb") is None:
        return "it is not installed (pip install wandb)"
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "disabled":
        return "WANDB_MODE is disabled"
    if mode == "offline" or os.environ.get("WANDB_API_KEY") or _has_netrc_entry():
        return None
    return "it is not configured (wandb login, or set WANDB_API_KEY)"


def _has_netrc_entry() -> bool:
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Progress:
    """A bar over tokens: how many, how fast, how long still, and in training the FVU now."""

    def __init__(self, *, total: int, done: int = 0, what: str = "training", hidden: bool = False) -> None:
        # smoothing=0: the mean speed so far, which makes the time left an honest guess from the first minute on.
        self._bar = tqdm(
            total=total,
            initial=done,
            disable=hidden,
            unit="tok",
            unit_scale=True,
            desc=what,
            smoothing=0,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )

    def advance(self, tokens: int) -> None:
        """Count tokens."""
        self._bar.update(tokens)

    def reach(self, tokens: float) -> None:
        """Say how many tokens are done in all; of one may be done a part."""
        self._bar.update(tokens - self._bar.n)

    def show(self, record: Record) -> None:
        """Show the mean FVU over hookpoints beside the bar."""
        values = [value for name, value in record.items() if name.endswith("/fvu")]
        self._bar.set_postfix_str(f"FVU {sum(values) / len(values):.4f}", refresh=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()


def note(message: str) -> None:
    """Print one line for the user, above a progress bar if one is shown."""
    tqdm.write(message, file=sys.stderr)


class Stopwatch:
    """Seconds spent inside `with`; on a GPU the device's own time, taken without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._started: Any = None
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> "Stopwatch":
        self._started = self._mark()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._on_gpu:
            self._pending.append((self._started, self._mark()))
        else:
            self._seconds += self._mark() - self._started

    def read(self) -> float:
        """Seconds so far. Waits for the device."""
        for start, end in self._pending:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        self._pending.clear()
        return self._seconds

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
