"""One contestant in a process of its own: `benchmarks.harness.worker JOB`, driven by lines of JSON on stdin and stdout.

A library's own training loop runs here, and pulls its batches from `Batches`. Between two batches `Batches` stops the
clock and waits for the next command, so the loop needs no changes and the process sleeps while others take their turn.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import measure

WARMUP_STEPS = 20
"""Linear warm-up of the learning rate when it is given."""


@dataclass
class Job:
    """What a worker trains, and on what."""

    library: str
    options: dict[str, Any] = field(default_factory=dict)
    """The setting of the library, in its engine's words."""
    d_in: int = 0
    num_latents: int = 0
    k: int = 32
    tokens: int = 0
    """Tokens per step."""
    activations: str | None = None
    """A .npy file (tokens, d_in), float32, or a raw .bf16 one; None when a language model makes them."""
    first_row: int = 0
    """Of the activations, where those to train on begin."""
    held_out: str | None = None
    """Another, for `evaluate`."""
    lr: float | None = None
    """None: the library's own learning rate and schedule. Else constant after `WARMUP_STEPS`."""
    peak_lr: float | None = None
    """None: the library's own learning rate. Else its own schedule with this peak."""
    steps: int = 10**6
    """Planned length of the run, which decides the schedule of a library's own learning rate."""
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    hookpoint: str = ""
    """The module whose output the activations are, for what is saved."""
    calibrate_on: int = 0
    """Of the activations, the first rows, on which a trainer that calibrates its threshold at the end does so."""
    fast_products: bool = False
    """Whether PyTorch may compute products of float32 in bf16, as ours are: a setting of the process."""

    @property
    def block(self) -> int:
        """The number in the hookpoint's name."""
        return int(self.hookpoint.rpartition(".")[2])

    @property
    def is_timed(self) -> bool:
        """Whether it is only about the time of a step, in a run without end."""
        return self.steps == Job.steps

    def learning_rate(self, step: int) -> float:
        """The given learning rate at `step`, from 0: what a LambdaLR of min(1, step / WARMUP_STEPS) gives the peers."""
        assert self.lr is not None
        return self.lr * min(1.0, step / WARMUP_STEPS)


class Stop(BaseException):
    """The end of the run; not an Exception, so that no library's loop swallows it."""


class Channel:
    """Lines of JSON to and from the process that drives this one. What libraries print goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any]:
        """The next command; raises Stop if nobody is left to give one."""
        line = sys.stdin.readline()
        if not line:
            raise Stop
        return json.loads(line)

    def send(self, reply: dict[str, Any]) -> None:
        """Answer the command."""
        print(json.dumps(reply), file=self._out, flush=True)


class Batches:
    """An endless iterator of activations that stops the clock and obeys commands whenever it is asked for the next."""

    def __init__(self, job: Job, channel: Channel) -> None:
        self.reconstruct: Callable[[Tensor], Tensor] | None = None
        """x -> x̂ with the weights of now; the engine sets it."""
        self.fired: Callable[[Tensor], Tensor] | None = None
        """x -> which latents fire, (tokens, num_latents) bool; the engine sets it."""
        self.save: Callable[[Path], None] | None = None
        """Write the dictionary into a folder as the library does; what is measured afterwards is what was written."""
        self._job, self._channel = job, channel
        self._data = None if job.activations is None else read_rows(job.activations, job.d_in)[job.first_row :]
        self._load, self._index = measure.OtherLoad(), 0
        self._untimed = self._timed = 0
        self._seconds: list[float] = []
        self._started: float | None = None
        self._baseline = measure.resident_bytes("VmRSS")
        measure.reset_peak()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Activations (tokens, d_in), float32, on the device; None if the job has none, or they were taken over."""
        self._stop_clock()
        while self._untimed + self._timed == 0:
            self._obey(self._channel.receive())
        batch = self._read()
        if self._untimed == 0 and not self._seconds:
            self._load.start()
        self._synchronise()
        self._started = time.perf_counter()
        return batch

    def take_over(self) -> Tensor:
        """All rows to train on, mapped from the disk, for a loop that reads them itself; `next` then keeps the time."""
        assert self._data is not None
        data, self._data = self._data, None
        return data

    def _stop_clock(self) -> None:
        if self._started is None:
            return
        self._synchronise()
        seconds, self._started = time.perf_counter() - self._started, None
        if self._untimed:
            self._untimed -= 1
            self._last_untimed = seconds
            if self._untimed + self._timed:
                return
        else:
            self._timed -= 1
            self._seconds.append(seconds)
        if self._timed == 0:
            self._end_turn()

    def _end_turn(self) -> None:
        if not self._seconds:
            self._channel.send({"seconds": self._last_untimed, "other_cores": None})
            return
        mean = sum(self._seconds) / len(self._seconds)
        self._channel.send({"seconds": mean, "other_cores": self._load.read()})
        if self._job.device == "cuda":
            torch.cuda.empty_cache()

    def _obey(self, command: dict[str, Any]) -> None:
        if command["do"] == "turn":
            self._untimed, self._timed, self._seconds = command["untimed"], command["timed"], []
        elif command["do"] == "peak":
            self._channel.send(self._peak())
        elif command["do"] == "measure":
            self._channel.send(self._measured(self._rows(command)))
        elif command["do"] == "write":
            np.save(command["path"], self._reconstructed(self._rows(command)))
            self._channel.send({})
        elif command["do"] == "save":
            assert self.save is not None
            torch.set_float32_matmul_precision("highest")
            self.save(Path(command["path"]))
            self._channel.send({})
        elif command["do"] == "evaluate":
            self._channel.send({"fvu": self._held_out_fvu()})
        else:
            raise Stop

    def _rows(self, command: dict[str, Any]) -> Tensor:
        """The rows of the job's activations that a command is about."""
        assert self._job.activations is not None
        return read_rows(self._job.activations, self._job.d_in)[command["first"] : command["end"]]

    def _read(self) -> Tensor | None:
        if self._data is None:
            return None
        start = self._index * self._job.tokens % (len(self._data) - self._job.tokens + 1)
        self._index += 1
        return self._data[start : start + self._job.tokens].to(self._job.device, torch.float32, copy=True)

    def _peak(self) -> dict[str, int | None]:
        if self._job.device == "cuda":
            return {"peak_bytes": torch.cuda.max_memory_allocated(), "baseline_bytes": 0}
        return {"peak_bytes": measure.resident_bytes("VmHWM"), "baseline_bytes": self._baseline}

    @torch.no_grad()
    def _held_out_fvu(self) -> float:
        """Σ‖x − x̂‖² / Σ‖x − mean‖² over the held-out activations: one definition for every library."""
        assert self.reconstruct is not None and self._job.held_out is not None
        x = torch.from_numpy(np.load(self._job.held_out))
        error = sum(
            (part - self.reconstruct(part.to(self._job.device)).float().cpu()).double().square().sum().item()
            for part in x.split(1024)
        )
        return error / (x.double() - x.double().mean(0)).square().sum().item()

    @torch.no_grad()
    def _reconstructed(self, x: Tensor) -> np.ndarray:
        """x̂, (tokens, d_in) float32."""
        assert self.reconstruct is not None
        parts = [self.reconstruct(part.to(self._job.device, torch.float32)).float().cpu() for part in x.split(1024)]
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def _measured(self, x: Tensor) -> dict[str, float]:
        """FVU, share of latents that never fire, and latents that fire per token, on rows that nobody trains on."""
        assert self.reconstruct is not None and self.fired is not None
        used = torch.zeros(self._job.num_latents, dtype=torch.bool)
        error, active = 0.0, 0
        for rows in x.split(1024):
            part = rows.to(self._job.device, torch.float32)
            error += (part - self.reconstruct(part).float()).double().square().sum().item()
            fired = self.fired(part)
            used |= fired.any(0).cpu()
            active += int(fired.sum())
        wide = x.double()
        variance = (wide - wide.mean(0)).square().sum().item()
        return {"fvu": error / variance, "unused": 1 - used.float().mean().item(), "l0": active / len(x)}

    def _synchronise(self) -> None:
        if self._job.device == "cuda":
            torch.cuda.synchronize()


def read_rows(path: str, d_in: int) -> Tensor:
    """The rows (tokens, d_in) of a .npy file or of a raw file in bf16, mapped from the disk."""
    if path.endswith(".bf16"):
        raw = torch.from_numpy(np.memmap(path, dtype=np.int16, mode="c").reshape(-1, d_in))
        return raw.view(torch.bfloat16)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def main() -> None:
    """Train until told to stop."""
    channel = Channel()
    job = Job(**json.loads(sys.argv[1]))
    _die_first()
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    if job.fast_products:
        torch.set_float32_matmul_precision("medium")
    engine = import_module(f"benchmarks.peers.{job.library}")
    train = engine.train if job.activations is not None else engine.train_on_model
    try:
        train(job, Batches(job, channel))
    except Stop:
        return


def _die_first() -> None:
    """If memory runs out, this process is the one to end: a benchmark must not take its neighbours down."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass


if __name__ == "__main__":
    main()
