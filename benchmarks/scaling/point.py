"""One measurement: the trainer's own steps at one size, in processes of their own."""

import json
import os
import socket
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import measure
from benchmarks.harness.given import GivenRows, GivenStore
from benchmarks.scaling.model import Size
from sae.activations.source import Activations, Batch
from sae.config import SaeConfig, TrainConfig
from sae.training.trainer import SaeTrainer

STEPS_OF_RUN = 100_000
WARM_UP, LEAST, SECONDS = 2, 5, 1.0
"""Steps that are not timed; steps that are, at least; and for how long at least."""


class SameRows(GivenRows):
    """The same rows at several hookpoints."""

    names: list[str]

    def __next__(self) -> Activations:
        (rows,) = super().__next__().values()
        return {name: rows.clone() for name in self.names}


class SameStore(GivenStore):
    """`ActivationStore` of the same rows at several hookpoints."""

    def __init__(self, rows: torch.Tensor, tokens: int, hookpoints: int) -> None:
        super().__init__(rows, tokens, STEPS_OF_RUN, torch.device("cpu"))
        self.chosen = [f"given.{number}" for number in range(hookpoints)]
        self.widths = dict.fromkeys(self.chosen, rows.shape[1])
        self.source = SameRows(rows, tokens, STEPS_OF_RUN, torch.device("cpu"))
        self.source.names = self.chosen

    def held_out_batches(self) -> Iterator[Batch]:
        for batch in super().held_out_batches():
            (rows,) = batch.activations.values()
            yield batch._replace(activations=dict.fromkeys(self.chosen, rows))


def trainer_of(size: Size, folder: str, **options: Any) -> SaeTrainer:
    """A trainer in the middle of a long run with the default recipe."""
    lr: Any = [1e-3 * 0.9**number for number in range(size.configurations)] if size.configurations > 1 else None
    cfg = TrainConfig(
        SaeConfig(num_latents=size.latents, k=size.k),
        batch_size=1, steps_per_batch=1, save_dir=folder, log_to_wandb=False, lr=lr, **options,
    )  # fmt: skip
    rows = torch.randn(4 * size.tokens, size.d_in, generator=torch.Generator().manual_seed(0))
    trainer = SaeTrainer(cfg, SameStore(rows, size.tokens, size.hookpoints))
    trainer.initialise()
    trainer.step = trainer.total_steps // 2  # when k has grown
    return trainer


def measured_here(size: Size) -> dict[str, Any]:
    """Medians over steps, and the peak of resident memory above what there was before."""
    measure.reset_peak()
    before = measure.resident_bytes("VmRSS") or 0
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(size, folder)
        seconds, processor, begun = [], [], time.perf_counter()
        for number in range(10**6):
            started, used = time.perf_counter(), time.process_time()
            if not trainer.train_step():
                raise RuntimeError("the data are used up")
            trainer.metrics(tokens_per_second=0.0)
            if number < WARM_UP:
                begun = time.perf_counter()
                continue
            seconds.append(time.perf_counter() - started)
            processor.append(time.process_time() - used)
            enough = len(seconds) >= LEAST and time.perf_counter() - begun > SECONDS
            if trainer.world.any(not enough) is False:
                break
        steps = number + 1
        sent = {kind: count // steps for kind, count in trainer.world.sent.items()}
        trainer.world.close()
    peak = (measure.resident_bytes("VmHWM") or 0) - before
    return {
        "seconds": statistics.median(seconds), "processor_seconds": statistics.median(processor),
        "least": min(seconds), "most": max(seconds), "steps": len(seconds), "peak_bytes": peak, "sent_bytes": sent,
    }  # fmt: skip


def measured(size: Size) -> dict[str, Any]:
    """The same, in forks of this process, which has imported everything; the first process's numbers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        children = [_fork(rank, size, port, Path(folder, "found")) for rank in range(size.processes)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            raise RuntimeError(f"processes of {size} ended with {codes}")
        found: dict[str, Any] = json.loads(Path(folder, "found").read_text())
    return found


def _fork(rank: int, size: Size, port: int, out: Path) -> int:
    sys.stdout.flush()
    if child := os.fork():
        return child
    if size.processes > 1:
        number = str(size.processes)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": number, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": number}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        found = measured_here(size)
        if rank == 0:
            out.write_text(json.dumps(found))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
