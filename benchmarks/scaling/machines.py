"""Two simulated machines of eight processes, over gloo, in all three ways: does it hang, and what does it send?

python -m benchmarks.scaling.machines [--steps 1000] [--out FILE]

Sixteen processes of this machine, which take themselves for those of two. Every mode trains the trainer's own steps at
tiny sizes in fp32. The bytes that each process sent are compared with the table of docs/scaling.md, "Traffic".
"""

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks import RESULTS
from benchmarks.harness import machine, measure
from benchmarks.scaling.model import Size
from benchmarks.scaling.point import trainer_of
from sae import lm
from sae.parallel.world import ring_bytes

MACHINES, EACH = 2, 8
LOG_EVERY = 10
"""Steps between two measures over all processes: `--log_every 10`."""
MODES: dict[str, dict[str, Any]] = {
    "data parallel": {},
    "--distribute_layers": {"distribute_layers": True},
    f"--shard_latents {EACH}": {"shard_latents": EACH},
}
SIZES = {
    "data parallel": Size(d_in=32, latents=128, k=4, tokens=16, hookpoints=2),
    "--distribute_layers": Size(d_in=32, latents=128, k=4, tokens=16, hookpoints=16),
    f"--shard_latents {EACH}": Size(d_in=32, latents=128, k=4, tokens=16, hookpoints=1),
}


def expected(mode: str, held: int, size: Size) -> dict[str, int]:
    """Bytes that a process sends in a step, by kind, as docs/scaling.md has them; it trains `held` autoencoders."""
    ranks, t, d, m = MACHINES * EACH, size.tokens, size.d_in, size.latents
    if mode == "--distribute_layers":
        return {"exchange": t * d * 4 * (size.hookpoints - held)}
    if mode == "data parallel":
        return {"replicas": size.hookpoints * ring_bytes(8 * m * d + 12 * m + 16 * d + 52, ranks)}
    n, r = EACH, min(128, d // 4)
    moved = (n - 1) * n * t * size.k * 4 + ring_bytes(n * t * 4 * d, n) + ring_bytes(4 * d + 8, n)
    shards = moved + ring_bytes(8 * (d * r + r + 1), n)
    replicas = ring_bytes(8 * m // n * d + 12 * m // n + 16 * d + 52, MACHINES)
    each = {"exchange": (n - 1) * t * d * 4, "shards": shards, "replicas": replicas}
    return {kind: size.hookpoints * count for kind, count in each.items()}


def work(mode: str, steps: int, folder: Path) -> None:
    """One process: train, and leave what it sent."""
    rank = int(os.environ["RANK"])
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as run:
        trainer = trainer_of(SIZES[mode], run, **MODES[mode])
        before, started = dict(trainer.world.sent), time.perf_counter()
        for step in range(steps):
            assert trainer.train_step()
            if step % LOG_EVERY == 0:
                trainer.metrics(tokens_per_second=0.0)
        seconds = time.perf_counter() - started
        sent = {kind: count - before.get(kind, 0) for kind, count in trainer.world.sent.items()}
        held = len(trainer.saes) if mode == "--distribute_layers" else SIZES[mode].hookpoints
        found = {"sent": sent, "held": held, "seconds": seconds, "resident": measure.resident_bytes("VmRSS")}
        (folder / f"{rank}.json").write_text(json.dumps(found))
        trainer.world.close()


def run(mode: str, steps: int, timeout: float) -> dict[str, Any]:
    """A mode in sixteen processes; those that take longer than `timeout` seconds are killed, which is an error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder, end = Path(name), time.monotonic() + timeout
        running = {_fork(rank, port, mode, steps, folder) for rank in range(MACHINES * EACH)}
        codes = []
        while running:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child:
                running.discard(child)
                codes.append(os.waitstatus_to_exitcode(status))
            elif time.monotonic() > end:
                for late in running:
                    os.kill(late, signal.SIGKILL)
            time.sleep(0 if child else 0.05)
        if any(codes):
            raise RuntimeError(f"{mode}: the processes ended with {codes}")
        found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(MACHINES * EACH)]
    return compared(mode, steps, found)


def compared(mode: str, steps: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """What the processes sent in a step, in the mean, beside what they should.

    In the mean, because a shuffled block is handed out by tokens, of which a step has now more of one process's.
    """
    formulas = [expected(mode, each["held"], SIZES[mode]) for each in found]
    sent = sum(sum(each["sent"].values()) for each in found)
    formula = sum(sum(each.values()) for each in formulas)
    return {
        "steps": steps,
        "seconds": max(each["seconds"] for each in found),
        "sent_in_a_step": sent / steps / len(found),
        "formula": formula / len(found),
        "by_kind": {kind: count / steps for kind, count in found[0]["sent"].items()},
        "formula_by_kind": formulas[0],
        "excess": sent - steps * formula,
        "resident_bytes": max(each["resident"] for each in found),
    }


def _fork(rank: int, port: int, mode: str, steps: int, folder: Path) -> int:
    sys.stdout.flush()
    if child := os.fork():
        return child
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(MACHINES * EACH), "LOCAL_RANK": str(rank % EACH),
        "LOCAL_WORLD_SIZE": str(EACH), "GROUP_RANK": str(rank // EACH), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        work(mode, steps, folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(arguments: list[str] | None = None) -> int:
    """Run all modes, print the table; the exit status is 1 if one of them sent more than it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a mode")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lm.compute_dtype = lambda device: torch.float32  # type: ignore[assignment]  # the formulas' bytes of a number
    about = machine.describe("cpu", 1)
    path = chosen.out or RESULTS / f"{time.strftime('%Y-%m-%d')}-{machine.label(about)}-two-machines.json"
    document: dict[str, Any] = {"machine": about, "versions": machine.versions([]), "modes": {}}
    if path.exists():
        document = json.loads(path.read_text())
    print("| 2 × 8 processes | steps | s | bytes of a process in a step | by docs/scaling.md | resident, MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for mode in chosen.modes:
        found = document["modes"][mode] = run(mode, chosen.steps, chosen.timeout)
        document["date"] = time.strftime("%Y-%m-%d")
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(
            f"| {mode} | {found['steps']} | {found['seconds']:.0f} | {found['sent_in_a_step']:,.0f} | "
            f"{found['formula']:,.0f} | {found['resident_bytes'] / 1e6:.0f} |",
            flush=True,
        )
    return int(any(found["excess"] > 0 for found in document["modes"].values()))


if __name__ == "__main__":
    sys.exit(main())
