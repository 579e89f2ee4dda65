"""Held-out quality of this library and its peers: `python -m benchmarks.quality.grid --layers 2 9 20 --seeds 0 1 2`.

Everybody trains on the same activations in the same order (`quality/data.py`), at its own defaults and at multiples of
its own learning rate. The best multiple is chosen on validation tokens with the first seed; what is printed was
measured on test tokens that nobody trained on and nothing was chosen on. Rows are kept in the JSON file as they come,
and rows that it holds are not measured again.
"""

import argparse
import dataclasses
import fcntl
import hashlib
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import RESULTS
from benchmarks.harness import machine
from benchmarks.harness.pool import Worker, WorkerError
from benchmarks.harness.shapes import OURS, QUALITY_CONTESTANTS, Cell, Contestant
from benchmarks.harness.worker import Job
from benchmarks.peers import environments
from benchmarks.quality import graft
from benchmarks.quality.data import BLOCK_SEQUENCES, CTX_LEN, READERS, TEXTS, VALIDATION_SEQUENCES, Source, token_file
from benchmarks.quality.tables import all_rows, best_multiple

MULTIPLES = (0.3, 1.0, 3.0, 10.0)
GRAFTED_BEFORE = 16
"""Sequences into which reconstructions were grafted in files that do not say it."""
VALIDATION_END = VALIDATION_SEQUENCES * (CTX_LEN - 1)
_LISTS = ("rows", "probes", "stability")
"""What several commands add to a file."""
TEST_END = BLOCK_SEQUENCES * (CTX_LEN - 1)


def default_lr(c: Contestant, cell: Cell) -> float:
    """The peak learning rate that the library would choose."""
    from sae.training.recipe import firings, peak_lr, steps_per_batch

    if c.library == "sae":
        batches = cell.tokens // cell.batch
        parts = steps_per_batch(batches, cell.batch)
        return peak_lr(cell.num_latents, batches * parts, firings(cell.batch // parts, cell.k, cell.num_latents))
    return library_lr(c, cell.num_latents)


def library_lr(c: Contestant, num_latents: int) -> float:
    """A peer's own peak learning rate."""
    if c.library == "sae_lens":
        return 3e-4
    return (5e-3 if "signum" in c.setting else 2e-4) * (num_latents / 2**14) ** -0.5


def job_of(c: Contestant, cell: Cell, multiple: float, seed: int, threads: int, device: str) -> Job:
    """The training run of a contestant in a cell."""
    return Job(
        library=c.library,
        options=dict(c.options),
        d_in=READERS[cell.text].d_in,
        num_latents=cell.num_latents,
        k=cell.k,
        tokens=cell.batch,
        activations=str(Source(cell.text, cell.layer).path),
        first_row=TEST_END,
        peak_lr=None if multiple == 1 else multiple * default_lr(c, cell),
        steps=cell.tokens // cell.batch,
        seed=seed,
        device=device,
        threads=threads,
    )


def measured(
    c: Contestant,
    cell: Cell,
    multiple: float,
    seed: int,
    threads: int,
    device: str = "cpu",
    *,
    grafted: int,
    unseen: int = 0,
) -> dict[str, Any]:
    """One training run: its row, with what grafting into so many sequences does, if any. Raises WorkerError.

    `unseen` is a number of tokens behind those trained on, for unused latents on more tokens than the test's.
    """
    job, others = job_of(c, cell, multiple, seed, threads, device), _unseen(cell, unseen)
    started = time.perf_counter()
    with Worker(job) as worker:
        worker.train(job.steps)
        seconds = time.perf_counter() - started
        row = {"validation": worker.measure(0, VALIDATION_END), "test": worker.measure(VALIDATION_END, TEST_END)}
        if unseen:
            row["unseen"] = {"tokens": unseen, **worker.measure(*others)}
        if grafted:
            row["grafted"] = _grafted(worker, graft.TestSequences(cell.text, grafted, device), cell.layer)
    return {**key(c, cell, multiple, seed), **row, "seconds": round(seconds, 1)}


def _unseen(cell: Cell, tokens: int) -> tuple[int, int]:
    """The first and the end of so many rows behind those that are trained on."""
    first = TEST_END + cell.tokens // cell.batch * cell.batch
    kept = len(Source(cell.text, cell.layer).rows())
    if tokens and first + tokens > kept:
        raise SystemExit(
            f"--unseen must be at most {max(0, kept - first)}, the tokens kept behind the {cell.tokens} trained on, "
            f"got {tokens}; keep more by python -m benchmarks.quality.data --tokens {first + tokens - TEST_END}"
        )
    return first, first + tokens


def _grafted(worker: Worker, tests: graft.TestSequences, layer: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recon.npy"
        worker.write(graft.FIRST_ROW, tests.end_row, path)
        return graft.grafted(tests, layer, torch.from_numpy(np.load(path)))


def key(c: Contestant, cell: Cell, multiple: float, seed: int) -> dict[str, Any]:
    """What tells one row from another."""
    return {**dataclasses.asdict(cell), "library": c.name, "multiple": multiple, "seed": seed}


def _changed(c: Contestant, least_firings: float | None) -> Contestant:
    """Ours with another number in its recipe, if one is given."""
    if least_firings is None:
        return c
    return dataclasses.replace(
        c, setting=f"least_firings {least_firings:g}", options=(("least_firings", least_firings),)
    )


class Rows:
    """The rows of a JSON file, to which several of these commands may add at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = json.loads(path.read_text()) if path.exists() else {"rows": []}

    def find(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """The row with these values."""
        return next((row for row in self.content["rows"] if wanted.items() <= row.items()), None)

    def of(self, c: Contestant, cell: Cell, seed: int) -> list[dict[str, Any]]:
        """The rows of a library with this seed."""
        wanted = {**dataclasses.asdict(cell), "library": c.name, "seed": seed}
        return [row for row in self.content["rows"] if wanted.items() <= row.items()]

    def check_text(self, text: str, digest: str) -> None:
        """Rows of other tokens under the same name would not be comparable: a text may change with the benchmark."""
        known = self.content.setdefault("texts", {}).setdefault(text, digest)
        if known != digest:
            raise SystemExit(
                f"{self.path} holds rows of other {text} tokens (sha256 {known[:12]}) than those kept here "
                f"({digest[:12]}), of another version of the text (quality/texts.py); choose another --out"
            )

    def check_grafted(self, sequences: int) -> None:
        """KL and cross-entropy of other test sequences would not be comparable either."""
        known = self.content.setdefault("grafted", GRAFTED_BEFORE if self.content["rows"] else sequences)
        if known != sequences:
            raise SystemExit(
                f"{self.path} holds rows that were grafted into {known} sequences, and --grafted is {sequences}; "
                f"use --grafted {known}, or choose another --out"
            )

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.merge("rows", [row])

    def merge(self, name: str, new: list[dict[str, Any]]) -> None:
        """Keep these entries of a list of the file, beside what others have added meanwhile."""
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if text := file.read():
                found = json.loads(text)
                versions = found.get("versions", {}) | self.content.get("versions", {})
                self.content = found | {key: self.content[key] for key in self.content if key not in _LISTS}
                self.content["versions"] = versions
            self.content.setdefault(name, []).extend(new)
            file.truncate(0)
            file.write(json.dumps(self.content, indent=1) + "\n")


def run(rows: Rows, cells: list[Cell], contestants: list[Contestant], chosen: argparse.Namespace) -> None:
    """Measure what is missing: every multiple with the first seed, then the default and the best with the others."""

    def measure(c: Contestant, cell: Cell, multiple: float, seed: int) -> None:
        if rows.find(key(c, cell, multiple, seed)) is None:
            try:
                extras = {"grafted": chosen.grafted, "unseen": chosen.unseen}
                row = measured(c, cell, multiple, seed, chosen.threads, chosen.device, **extras)
            except WorkerError as error:
                row = {**key(c, cell, multiple, seed), "note": str(error)}
            rows.add(row)
            found = (
                f"FVU {row['test']['fvu']:.4f}, unused {row['test']['unused']:.1%}" if "test" in row else row["note"]
            )
            if "unseen" in row:
                found += f" (of {row['unseen']['tokens']} other tokens {row['unseen']['unused']:.1%})"
            print(f"{time.strftime('%H:%M:%S')} {c.name} {cell} × {multiple:g}, seed {seed}: {found}", file=sys.stderr)

    for cell, c in itertools.product(cells, contestants):
        for multiple in chosen.multiples:
            measure(c, cell, multiple, chosen.seeds[0])
        for seed in chosen.seeds[1:]:
            for multiple in {1.0, best_multiple(rows.of(c, cell, chosen.seeds[0]))}:
                measure(c, cell, multiple, seed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", choices=TEXTS, default="english")
    parser.add_argument("--layers", type=int, nargs="+", help="blocks, of those that are kept; default: all of them")
    parser.add_argument("--latents", type=int, nargs="+", default=[4608, 18432])
    parser.add_argument("--k", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--batch", type=int, default=4096, help="tokens per step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--multiples", type=float, nargs="+", default=MULTIPLES, help="of each library's learning rate")
    parser.add_argument(
        "--libraries", nargs="+", default=["sae", *environments.PEERS], help="or their settings: 'sparsify adam'"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where everybody trains")
    parser.add_argument("--threads", type=int, default=machine.available_cores())
    parser.add_argument(
        "--grafted", type=int, default=graft.SEQUENCES, help="test sequences for KL and cross-entropy; all; 0: none"
    )
    parser.add_argument(
        "--unseen", type=int, default=0, help="tokens behind those trained on, to count unused latents on too"
    )
    parser.add_argument("--least_firings", type=float, help="of our recipe, in place of the default's; 0: no rule")
    parser.add_argument("--out", type=Path, default=RESULTS / "quality.json")
    chosen = parser.parse_args()
    if not 0 <= chosen.grafted <= graft.SEQUENCES:
        parser.error(f"--grafted must be from 0 to the {graft.SEQUENCES} test sequences, got {chosen.grafted}")
    torch.set_num_threads(chosen.threads)
    contestants = [c for c in QUALITY_CONTESTANTS if {c.library, c.name} & set(chosen.libraries)]
    contestants = [_changed(c, chosen.least_firings) if c == OURS else c for c in contestants]
    rows = Rows(chosen.out)
    rows.content["machine"] = machine.describe(chosen.device, chosen.threads)
    rows.content["versions"] = rows.content.get("versions", {}) | machine.versions([c.library for c in contestants])
    rows.content["date"] = time.strftime("%Y-%m-%d")
    rows.check_text(chosen.text, hashlib.sha256(token_file(chosen.text).read_bytes()).hexdigest())
    rows.check_grafted(chosen.grafted)
    sizes = itertools.product(chosen.layers or READERS[chosen.text].layers, chosen.latents, chosen.k, chosen.tokens)
    cells = [Cell(chosen.text, *size, chosen.batch) for size in sizes]
    run(rows, cells, contestants, chosen)
    print("\n".join(all_rows(rows.content["rows"])))


if __name__ == "__main__":
    main()
