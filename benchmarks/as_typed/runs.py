"""Runs in processes of their own, timed from outside: our command as a user types it, and eai-sparsify's trainer."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from benchmarks import ROOT
from benchmarks.harness import machine, measure
from benchmarks.peers import environments

WINDOW = 8
"""Records of a window of speed; of a short run a third of all."""


class RunError(RuntimeError):
    """A run that failed, and its last words."""


@dataclass
class Run:
    """One run, from start to end. Seconds, but for the tokens."""

    library: str
    tokens: int = 0
    total: float = 0.0
    start: float = 0.0
    """From the start of the process until the first activations are asked for."""
    first_look: float | None = None
    """Of the training, until the first step: activations of the first block are made, to centre and scale by."""
    training: float = 0.0
    """From the first activations that are asked for to the end of the last step."""
    saving: float | None = None
    evaluation: float | None = None
    """On held-out tokens, and the report; eai-sparsify has none."""
    slowest_window: float | None = None
    """Least tokens/s of a window by the median of those after it. The first record does not count."""
    slowest_steps: float | None = None
    """The same of the autoencoders' own training alone, without the language model, which reads ahead; only ours."""
    peak_bytes: int = 0
    """The largest resident set of the process, or of one that it started."""
    peak_until_trained: int = 0
    """Of the process until the end of the last step, looked at ten times a second."""
    other_cores: float | None = None
    load_before: dict[str, Any] = field(default_factory=dict)
    dead: dict[str, float] = field(default_factory=dict)
    """Share of latents, by hookpoint, that count as dead at the end."""

    @property
    def tokens_per_second(self) -> float:
        """Of the training."""
        return self.tokens / self.training

    def as_json(self) -> dict[str, Any]:
        """Plain values, the speed with them."""
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


def ours(arguments: Sequence[str], folder: Path, threads: int | None) -> tuple[Run, Path]:
    """`sae ARGUMENTS` in `folder`, and the folder of the run that it left."""
    begun, run, memory = _timed("sae", [sys.executable, "-m", "sae", *arguments], folder, threads)
    metrics = max(folder.glob("checkpoints/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = records[-1]
    trained = metrics.stat().st_mtime
    files = [path for path in metrics.parent.glob("step_*/**/*") if path.is_file()]
    saved = max(path.stat().st_mtime for path in files)
    run.tokens, run.training = int(last["tokens"]), last["tokens"] / last["tokens_per_second"]
    run.start = trained - run.training - begun
    run.first_look = (metrics.parent / "config.json").stat().st_mtime - run.start - begun
    run.saving, run.evaluation = saved - trained, begun + run.total - saved
    run.peak_until_trained = memory.peak(trained)
    run.slowest_window = slowest_window([(r["tokens"], r["tokens"] / r["tokens_per_second"]) for r in records])
    run.slowest_steps = slowest_window([(r["tokens"], _own_seconds(r)) for r in records])
    ending = "/dead_fraction"
    run.dead = {name.removesuffix(ending): value for name, value in last.items() if name.endswith(ending)}
    return run, metrics.parent


def _own_seconds(record: dict[str, float]) -> float:
    """Seconds of all autoencoders' own training until this record of metrics.jsonl."""
    return sum(record["tokens"] / speed for name, speed in record.items() if name.endswith("/tokens_per_second"))


def prepared(arguments: Sequence[str], folder: Path, threads: int | None) -> float:
    """Seconds of an `sae` command that trains nothing."""
    return _timed("sae", [sys.executable, "-m", "sae", *arguments], folder, threads).run.total


def theirs(job: dict[str, Any], folder: Path, threads: int | None) -> tuple[Run, Path]:
    """eai-sparsify's trainer in `folder`, and where it saved."""
    python = str(environments.python_of("sparsify"))
    begun, run, memory = _timed(
        "sparsify", [python, "-m", "benchmarks.as_typed.peer", json.dumps(job)], folder, threads
    )
    times = json.loads((folder / "times.json").read_text())
    batches, size = times["begun"], times["tokens_per_batch"]
    ends = [*batches[1:], times["trained"]]
    run.tokens, run.start = size * len(batches), batches[0] - begun
    run.training, run.saving = times["trained"] - batches[0], begun + run.total - times["trained"]
    run.slowest_window = slowest_window([(size * (n + 1), end - batches[0]) for n, end in enumerate(ends)])
    run.peak_until_trained = memory.peak(times["trained"])
    run.dead = times["dead"]
    return run, folder / "checkpoints" / "unnamed"


def slowest_window(records: Sequence[tuple[float, float]]) -> float | None:
    """Of (tokens, seconds) so far: the least speed of a window by the median of later ones; None of fewer than two."""
    size = min(WINDOW, max(1, len(records) // 3))
    marks = records[::size]
    speeds = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(marks, marks[1:], strict=False)]
    ratios = [speed / statistics.median(speeds[n + 1 :]) for n, speed in enumerate(speeds[:-1])]
    return min(ratios, default=None)


class Memory:
    """Looks at the resident set of a process until there is none."""

    def __init__(self, pid: int) -> None:
        self._seen: list[tuple[float, int]] = []
        Thread(target=self._look, args=(Path(f"/proc/{pid}/statm"),), daemon=True).start()

    def peak(self, until: float) -> int:
        """Bytes, at most, until this time."""
        return max((size for at, size in self._seen if at <= until), default=0)

    def _look(self, statm: Path) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while True:
            try:
                self._seen.append((time.time(), int(statm.read_text().split()[1]) * page))
            except (OSError, IndexError):
                return
            time.sleep(0.1)


class Timed(NamedTuple):
    """When a process began, and what was seen of it."""

    begun: float
    run: Run
    memory: Memory


def _timed(library: str, command: list[str], folder: Path, threads: int | None) -> Timed:
    """Run a process. Raises RunError with its last words."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(library, load_before=machine.load())
    with (folder / f"{library}.log").open("w+") as log:
        busy, begun = measure.busy_seconds(), time.time()
        process = subprocess.Popen(command, cwd=folder, env=_environment(folder, threads), stdout=log, stderr=log)
        memory = Memory(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        run.total, busy_now = time.time() - begun, measure.busy_seconds()
        if process.returncode:
            log.seek(0)
            words = " ".join(log.read().split())[-300:]
            raise RunError(f"{library} ended with status {process.returncode}: {words}")
    run.peak_bytes = usage.ru_maxrss * 1024
    if busy is not None and busy_now is not None:
        own = usage.ru_utime + usage.ru_stime
        run.other_cores = round(max(0.0, (busy_now - busy - own) / run.total), 2)
    return Timed(begun, run, memory)


def _environment(folder: Path, threads: int | None) -> dict[str, str]:
    """A shell's, of somebody who sets nothing: threads as PyTorch chooses, an empty cache of data sets, no network."""
    dropped = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "VIRTUAL_ENV", "PYTHONPATH")
    chosen = {name: value for name, value in os.environ.items() if name not in dropped}
    chosen |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "HF_DATASETS_CACHE": str(folder / "datasets")}
    chosen |= {"PYTHONPATH": str(ROOT)}
    return chosen | ({} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)})
