"""Who finds known features? The peers on the stream of `sae selftest`: `python -m benchmarks.quality.known_features`.

Everybody trains on the same synthetic tokens, at its own learning rate and at multiples of it, and is measured by
`sae selftest`'s own measure on its held-out tokens, all at an L0 of k, or of `--l0` by one threshold. The multiple
with the best F1 on other tokens is shown. Rows are kept in the JSON file as they come; rows that it holds are not
measured again.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import CACHE, RESULTS
from benchmarks.harness import machine
from benchmarks.harness.pool import Worker, WorkerError
from benchmarks.harness.shapes import FAMILY_CONTESTANTS, Contestant
from benchmarks.harness.worker import Job
from benchmarks.quality.grid import Rows, library_lr
from benchmarks.quality.members import Row, with_l0
from sae import Sae
from sae.activations.synthetic import Sample, SyntheticStore
from sae.config import SelftestConfig
from sae.dictionary.autoencoder import Encoded
from sae.dictionary.threshold import RunningThreshold
from sae.evaluation.recovery import recovery
from sae.formats.record import with_threshold

FITTED = 20_480
"""First tokens of the file, on which thresholds are fitted and rates are chosen."""
PREFIXES = (100, 400)


@dataclass(frozen=True)
class World:
    """The known features, and the dictionaries that are to find them."""

    k: int
    tokens: int
    num_features: int = 1000
    width: int = 64
    batch: int = 2048
    num_latents: int = 0
    """0: as many as features."""
    l0: float = 0.0
    """Latents of a token at inference, in the mean. 0: k."""

    @property
    def latents(self) -> int:
        """Latents of each dictionary."""
        return self.num_latents or self.num_features

    @property
    def store(self) -> SyntheticStore:
        """What `sae selftest` reads."""
        cfg = SelftestConfig(
            num_features=self.num_features,
            width=self.width,
            max_tokens=self.tokens,
            batch_size=self.batch // 256,
            log_to_wandb=False,
        )
        return SyntheticStore(cfg, torch.device("cpu"))

    @property
    def validation(self) -> Sample:
        """Tokens that nobody trains on, and nothing is reported on."""
        return self.store.features.sample(FITTED, seed=0)

    def file(self) -> Path:
        """A .npy file of the validation tokens and those to train on, (tokens, width), float32."""
        path = CACHE / "known-features" / f"{self.num_features}-{self.width}-{self.tokens}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            batches = [next(iter(batch.values())) for batch in self.store.source]
            np.save(path, torch.cat([self.validation.x, *batches]).numpy())
        return path


def trained(c: Contestant, world: World, multiple: float, seed: int, threads: int) -> Row:
    """One training run, saved: its row. Raises WorkerError."""
    row = row_of(c, world, multiple, seed)
    options = dict(c.options) | ({"prefixes": PREFIXES} if "matryoshka" in c.setting else {})
    job = Job(
        library=c.library, options=options, d_in=world.width, num_latents=world.latents, k=world.k,
        tokens=world.batch, activations=str(world.file()), first_row=FITTED, steps=world.tokens // world.batch,
        peak_lr=None if multiple == 1 else multiple * library_lr(c, world.latents), seed=seed, threads=threads,
        hookpoint="layers.0", calibrate_on=FITTED,
    )  # fmt: skip
    folder = CACHE / "dictionaries" / "known-features" / "-".join(str(value) for value in row.values())
    before = os.times().children_user
    with Worker(job) as worker:
        worker.train(job.steps)
        worker.save(folder)
    sae = at_l0(Sae.load_from_disk(folder), world)
    directions = world.store.features.directions
    found = {
        name: recovery(sae, directions, *sample)._asdict()
        for name, sample in (("validation", world.validation), ("test", world.store.held_out_sample()))
    }
    return row | found | {"cpu_seconds": round(os.times().children_user - before, 1)}


class Thresholded:
    """A dictionary of whose latents only those above `least` stay: what `recovery` asks of one."""

    def __init__(self, sae: Sae, least: float) -> None:
        self._sae, self._least = sae, least
        self.W_dec, self.num_latents, self.device, self.decode = sae.W_dec, sae.num_latents, sae.device, sae.decode

    def encode(self, x: Tensor) -> Encoded:
        """The codes."""
        acts, indices = self._sae.encode(x)
        return Encoded(acts * (acts > self._least), indices)


@torch.no_grad()
def at_l0(sae: Sae, world: World) -> Any:
    """The dictionary with the L0 at which all are compared.

    If that is not k, every one gets a new threshold: TopK among the k that it keeps, others instead of their own.
    """
    if not world.l0:
        return with_l0(sae, world.validation.x, world.k)
    if sae.threshold is not None:
        sae = Sae.from_saved(with_threshold(sae.saved(), torch.zeros(sae.num_latents)))
    counts = RunningThreshold(sae.device)
    for part in world.validation.x.split(world.batch):
        counts.add(sae.encode(part).top_acts)
    counts.end_step()
    return Thresholded(sae, float(counts.value(world.l0)))


def row_of(c: Contestant, world: World, multiple: float, seed: int) -> Row:
    """What tells one row from another."""
    return asdict(world) | {"library": c.name, "multiple": multiple, "seed": seed}


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each k and member, at the multiple with the best F1 on validation tokens: means over seeds."""
    yield "| | rate | F1 | MCC | found | dead | L0 | FVU |"
    yield "|---|---:|" + "---:|" * 6
    for (k, *size), c in itertools.product(sorted({_size(row) for row in rows}), FAMILY_CONTESTANTS):
        own = [row for row in rows if (_size(row), row["library"]) == ((k, *size), c.name) and "test" in row]
        if own:
            multiples = sorted({row["multiple"] for row in own})
            best = max(multiples, key=lambda each: _mean(own, each, "validation", "f1"))
            f1, mcc, found, dead, l0, fvu = (
                _mean(own, best, "test", name) for name in ("f1", "mcc", "found", "dead", "l0", "fvu")
            )
            rate = f"× {best:g}" + (f" of {', '.join(f'{each:g}' for each in multiples)}" if len(multiples) > 1 else "")
            numbers = f"{f1:.3f} | {mcc:.3f} | {found:.1%} | {dead:.1%} | {l0:.2f} | {fvu:.4f}"
            yield f"| {c.name}, k {k} | {rate} | {numbers} |"


def _size(row: Row) -> tuple[float, ...]:
    """What everybody was given: k, and what the oldest files do not say."""
    return (row["k"], row["tokens"], row.get("num_latents", 0), row.get("l0", 0))


def _mean(rows: Sequence[Row], multiple: float, part: str, name: str) -> float:
    return float(np.mean([row[part][name] for row in rows if row["multiple"] == multiple]))


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--k", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--num_latents", type=int, default=0, help="default: as many as features")
    parser.add_argument("--l0", type=float, default=0.0, help="latents of a token at inference; default: k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--multiples", type=float, nargs="+", default=[1.0, 3.0, 10.0], help="of a peer's own rate")
    names = [c.name for c in FAMILY_CONTESTANTS]
    parser.add_argument("--members", nargs="+", choices=names, default=names, metavar="'LIBRARY MEMBER'")
    parser.add_argument("--threads", type=int, default=machine.available_cores())
    parser.add_argument("--out", type=Path, default=RESULTS / "known-features.json")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    contestants = [c for c in FAMILY_CONTESTANTS if c.name in chosen.members]
    rows = Rows(chosen.out)
    rows.content["machine"] = machine.describe("cpu", chosen.threads)
    rows.content["versions"] = rows.content.get("versions", {}) | machine.versions([c.library for c in contestants])
    rows.content["date"] = time.strftime("%Y-%m-%d")
    for k, c, seed in itertools.product(chosen.k, contestants, chosen.seeds):
        world = World(k, chosen.tokens, num_latents=chosen.num_latents, l0=chosen.l0)
        for multiple in (1.0,) if c.library == "sae" else chosen.multiples:
            wanted = row_of(c, world, multiple, seed)
            if rows.find(wanted) is None:
                try:
                    row: dict[str, Any] = trained(c, world, multiple, seed, chosen.threads)
                except WorkerError as error:
                    row = wanted | {"note": str(error)}
                rows.add(row)
                told = f"F1 {row['test']['f1']:.3f}" if "test" in row else row["note"]
                print(f"{time.strftime('%H:%M:%S')} {c.name}, k {k} × {multiple:g}: {told}", file=sys.stderr)
    print("\n".join(table(rows.content["rows"])))


if __name__ == "__main__":
    main()
