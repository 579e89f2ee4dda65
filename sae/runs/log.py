"""Where metrics go: a progress bar, metrics.jsonl, Weights & Biases. A sink never changes training."""

import importlib.util
import json
import netrc
import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from tqdm import tqdm

from sae.storage.damage import in_one_line
from sae.storage.files import write_atomically

_MAX_LINE_BYTES = 2**22
_MAX_WAITING = 10_000
"""Records that wait for a service before it is given up."""
PATIENCE = 30
"""Seconds that a service may take to begin and to finish."""

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
        write_atomically(path, b"".join(map(_line, kept)))
        self._path, self._file = path, path.open("ab", buffering=0)
        self._waiting = bytearray()
        """Lines that a full disk has not taken yet."""
        self._told = False

    def write(self, record: Record) -> None:
        """Append one line. What cannot be written now is tried again with the next."""
        self._waiting += _line(record)
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            if not self._told:
                note(f"{self._path} cannot be written ({error.strerror}); what is missing is kept until it can")
            self._told = True

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.write(self._waiting)
        self._file.close()


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


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


class Detached:
    """A sink in a thread of its own: the writer never waits for it and never gets its errors. It may fail, once."""

    def __init__(self, make: Callable[[], Sink], *, what: str, instead: Path) -> None:
        """`make` opens the sink, in the thread. The user is told in one line when `what` fails, and what is left."""
        self._make, self._what, self._instead = make, what, instead
        self._records: Queue[Record | None] = Queue(_MAX_WAITING)
        self._failed = Event()
        self._thread = Thread(target=self._work, name=what, daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Hand on one record."""
        self._put(record)

    def close(self) -> None:
        """Let the sink finish, for `PATIENCE` seconds at most."""
        self._put(None)
        if not self._failed.is_set():
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                self._give_up(f"it was not done after {PATIENCE} s")

    def _put(self, record: Record | None) -> None:
        if self._failed.is_set():
            return
        try:
            self._records.put_nowait(record)
        except Full:
            self._give_up("it takes no more records")

    def _work(self) -> None:
        try:
            sink = self._make()
            try:
                while (record := self._records.get()) is not None:
                    sink.write(record)
            except BaseException:
                with suppress(Exception):
                    sink.close()
                raise
            sink.close()
        except BaseException as error:  # whatever a service or its library does: it is no reason to stop
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        if not self._failed.is_set():
            self._failed.set()
            note(f"no longer logging to {self._what} ({in_one_line(reason)}); metrics go to {self._instead}")


class WandbSink:
    """Sends records to Weights & Biases. To be used `Detached`: any call may fail, or take minutes.

    A run that is resumed goes on there. Of steps that it logs again, the first record stays.
    """

    def __init__(self, *, name: str, config: dict[str, Any], folder: Path) -> None:
        import wandb

        settings = wandb.Settings(silent=True, init_timeout=PATIENCE)
        known: dict[str, Any] = {"id": _wandb_id(folder), "resume": "allow"}
        self._run = wandb.init(project="sae", name=name, config=config, dir=str(folder), settings=settings, **known)

    def write(self, record: Record) -> None:
        """Log one record at its step."""
        self._run.log(record, step=int(record["step"]))

    def close(self) -> None:
        """Upload what is left."""
        self._run.finish()


def _wandb_id(folder: Path) -> str:
    """The run's id in Weights & Biases, which is kept in its folder."""
    path = folder / "wandb" / "run-id"
    with suppress(OSError, ValueError):
        found = path.read_bytes()[:9].decode()
        if re.fullmatch("[0-9a-f]{8}", found):
            return found
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, (fresh := secrets.token_hex(4)).encode())
    return fresh


def why_no_wandb() -> str | None:
    """Reason why Weights & Biases cannot be used without a question to the user; None if it can."""
    if importlib.util.find_spec("wandb") is None:
        return "it is not installed (pip install wandb)"
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "disabled":
        return "WANDB_MODE is disabled"
    if mode == "offline" or os.environ.get("WANDB_API_KEY") or _has_netrc_entry():
        return None
    return "it is not configured (wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline)"


def _has_netrc_entry() -> bool:
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Progress:
    """A bar over tokens: how many, how fast, how long still, and in training the FVU now."""

    def __init__(
        self, *, total: int, done: int = 0, what: str = "training", unit: str = "tok", hidden: bool = False
    ) -> None:
        # smoothing=0: the mean speed so far, which makes the time left an honest guess from the first minute on.
        self._bar = tqdm(
            total=total,
            initial=done,
            disable=hidden,
            unit=unit,
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
        """Say how many tokens are done in all; the last may be done in part."""
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
