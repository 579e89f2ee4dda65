"""Start workers and give them their turns."""

import dataclasses
import json
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.harness import machine
from benchmarks.harness.measure import Turn
from benchmarks.harness.worker import Job
from benchmarks.peers import environments

WARMUP_TURN = 3
"""Steps before the first turn: set-up, allocation and autotuning are not what is measured."""


class WorkerError(RuntimeError):
    """A worker ended before it answered."""


class Worker:
    """A process that trains one autoencoder, or several on a language model, with one library."""

    def __init__(self, job: Job) -> None:
        """Starts the process, and waits for nothing. Raises WorkerError if the library cannot be installed."""
        try:
            python = environments.python_of(job.library)
        except environments.PeerError as error:
            raise WorkerError(f"not measured: {error}") from None
        self._log = tempfile.TemporaryFile("w+")
        threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.harness.worker", json.dumps(dataclasses.asdict(job))],
            env=machine.ours_first() | threads | {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._plan = {"untimed": 1, "timed": 1}

    def warm_up(self, turn_seconds: float) -> None:
        """Take the first steps, untimed, and choose how many steps a turn takes so that it lasts `turn_seconds`."""
        seconds = self._ask("turn", untimed=WARMUP_TURN, timed=0)["seconds"]
        # The first step after a pause finds cold caches; it is left out unless it is so long that they do not matter.
        self._plan = {"untimed": int(seconds < 1), "timed": max(1, math.ceil(turn_seconds / seconds))}

    def turn(self) -> Turn:
        """One turn, as planned."""
        return Turn(**self._ask("turn", **self._plan))

    def train(self, steps: int) -> None:
        """Take `steps` steps."""
        self._ask("turn", untimed=steps, timed=0)

    def peak(self) -> dict[str, int | None]:
        """`peak_bytes` and `baseline_bytes`, which the process had before it made anything of its own."""
        return self._ask("peak")

    def held_out_fvu(self) -> float:
        """FVU of the held-out activations with the weights of now."""
        return self._ask("evaluate")["fvu"]

    def measure(self, first: int, end: int) -> dict[str, float]:
        """`fvu`, `unused` and `l0` on these rows of the job's activations."""
        return self._ask("measure", first=first, end=end)

    def write(self, first: int, end: int, path: Path) -> None:
        """Reconstruct these rows of the job's activations into a .npy file, (tokens, d_in) float32."""
        self._ask("write", first=first, end=end, path=str(path))

    def save(self, folder: Path) -> None:
        """End the run: write the dictionary into a folder, and from now on measure it as it selects at inference."""
        self._ask("save", path=str(folder))

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        errors = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt)\b.*$", self._log.read(), re.MULTILINE)
        if status == -9:
            return "not measured: ended by the kernel, out of memory"
        return f"not measured: ended with status {status}, {errors[-1][:120] if errors else 'no message'}"

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate('{"do": "stop"}\n' if self._process.poll() is None else None)
        self._log.close()


@contextmanager
def warm_workers(jobs: Mapping[str, Job], turn_seconds: float) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """Workers that start together and take their first steps one by one; and the last words of those that failed."""
    with ExitStack() as stack:
        started: dict[str, Worker] = {}
        alive: dict[str, Worker] = {}
        failed: dict[str, str] = {}
        for name, job in jobs.items():
            try:
                started[name] = stack.enter_context(Worker(job))
            except WorkerError as error:
                failed[name] = str(error)
        for name, worker in started.items():
            try:
                worker.warm_up(turn_seconds)
                alive[name] = worker
            except WorkerError as error:
                failed[name] = str(error)
        yield alive, failed
