"""The k-sparse family beside the peers' members of it, at inference: `python -m benchmarks.quality.members --layers 9`.

Everybody trains TopK, BatchTopK and Matryoshka dictionaries on the same activations (`quality/data.py`), the peers at
multiples of their own learning rates, and saves them in its own format under benchmarks/.cache/dictionaries/. A row has
FVU, L0 and unused latents as the library's own code has them at inference: with the threshold that it saved. `at_k` is
of the files as this library reads them, with one threshold that keeps k latents of a validation token in the mean:
dictionaries of unequal L0 are not comparable. The best multiple has the lowest FVU at that on validation tokens.

Rows are kept in the JSON file as they come; rows that it holds are not measured again.
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import CACHE, RESULTS
from benchmarks.harness import machine
from benchmarks.harness.pool import Worker, WorkerError
from benchmarks.harness.shapes import FAMILY_CONTESTANTS, Cell, Contestant
from benchmarks.quality.data import LAYERS, Source, token_file
from benchmarks.quality.grid import TEST_END, VALIDATION_END, Rows, job_of, key
from sae import Sae
from sae.dictionary.threshold import RunningThreshold

Row = dict[str, Any]
AT_ONCE = 2048
"""Tokens."""
MOST = 8
"""Latents of a token, in multiples of k, among which a threshold is looked for."""


def hookpoint(cell: Cell) -> str:
    """The module whose output is in the cell's activations."""
    return f"layers.{cell.layer}"


def folder_of(row: Row) -> Path:
    """Where the dictionary of a row lies: named after its hookpoint, below what tells it from others."""
    sizes = "-".join(str(row[name]) for name in ("text", "num_latents", "k", "tokens", "batch"))
    run = f"{row['library']} {row['multiple']:g} seed{row['seed']}".replace(" ", "-")
    return CACHE / "dictionaries" / sizes / run / f"layers.{row['layer']}"


def trained(c: Contestant, cell: Cell, multiple: float, seed: int, threads: int) -> Row:
    """One training run, saved: its row. Raises WorkerError."""
    job = job_of(c, cell, multiple, seed, threads, "cpu")
    job = replace(job, hookpoint=hookpoint(cell), calibrate_on=VALIDATION_END, fast_products=True)
    row, before = key(c, cell, multiple, seed), os.times().children_user
    with Worker(job) as worker:
        worker.train(job.steps)
        worker.save(folder_of(row))
        row |= {"validation": worker.measure(0, VALIDATION_END), "test": worker.measure(VALIDATION_END, TEST_END)}
    seconds = os.times().children_user - before
    return row | {"at_k": at_k(folder_of(row), cell), "cpu_seconds": round(seconds, 1)}


def at_k(folder: Path, cell: Cell) -> dict[str, dict[str, float]]:
    """What the saved dictionary has at an L0 of k: `validation` and `test`."""
    source = Source(cell.text, cell.layer)
    sae = with_l0(Sae.load_from_disk(folder), source.validation(), cell.k)
    return {"validation": measured(sae, source.validation()), "test": measured(sae, source.test())}


@torch.no_grad()
def with_l0(sae: Sae, x: Tensor, k: int) -> Sae:
    """The dictionary, if it has a threshold with one that keeps k latents of these tokens in the mean."""
    if sae.threshold is not None:
        counts = RunningThreshold(sae.device)
        for rows in x.split(AT_ONCE):
            read = rows - sae.b_dec if sae.spec.centred else rows
            acts = torch.nn.functional.linear(read, sae.encoder.weight, sae.encoder.bias)
            counts.add(acts.topk(min(MOST * k, sae.num_latents), sorted=False).values)
        counts.end_step()
        sae.threshold.fill_(counts.value(k))
    return sae


@torch.no_grad()
def measured(sae: Sae, x: Tensor) -> dict[str, float]:
    """FVU, share of latents that fire on no token, latents per token: what the workers measure, of a saved one."""
    used = torch.zeros(sae.num_latents, dtype=torch.bool)
    error, active = 0.0, 0
    for rows in x.split(AT_ONCE):
        acts, indices = sae.encode(rows)
        error += (rows - sae.decode(acts, indices)).double().square().sum().item()
        used[indices[acts > 0]] = True
        active += int((acts > 0).sum())
    wide = x.double()
    variance = (wide - wide.mean(0)).square().sum().item()
    return {"fvu": error / variance, "unused": 1 - used.float().mean().item(), "l0": active / len(x)}


def best(rows: Iterable[Row]) -> Row | None:
    """Of the measured rows of one member with the first seed: that with the lowest FVU at k on validation tokens."""
    found = [row for row in rows if "at_k" in row]
    first = [row for row in found if row["seed"] == min(each["seed"] for each in found)]
    return min(first, key=lambda row: row["at_k"]["validation"]["fvu"], default=None)


def best_of(rows: Sequence[Row], cell: Cell) -> dict[str, Row]:
    """The best row of each member in a cell, by its name, in the order of the contestants."""
    here = [row for row in rows if asdict(cell).items() <= row.items()]
    found = {c.name: best(row for row in here if row["library"] == c.name) for c in FAMILY_CONTESTANTS}
    return {name: row for name, row in found.items() if row is not None}


def cells_of(rows: Iterable[Row]) -> list[Cell]:
    """The cells of these rows, each once."""
    return list(dict.fromkeys(Cell(*(row[field.name] for field in fields(Cell))) for row in rows))


def table(rows: Sequence[Row], cell: Cell) -> Iterator[str]:
    """A line for each member: at inference, and at an L0 of k."""
    yield "| | rate | L0 | FVU | FVU at L0 = k | unused |"
    yield "|---|---:|" + "---:|" * 4
    for name, row in best_of(rows, cell).items():
        own = [each for each in rows if key_of(each) == key_of(row)]
        tried = ", ".join(f"{each['multiple']:g}" for each in sorted(own, key=lambda each: each["multiple"]))
        test, at = row["test"], row["at_k"]["test"]
        rate = f"× {row['multiple']:g} of {tried}" if len(own) > 1 else f"× {row['multiple']:g}"
        yield (f"| {name} | {rate} | {test['l0']:.2f} | {test['fvu']:.4f} | {at['fvu']:.4f} | {at['unused']:.1%} |")


def key_of(row: Row) -> tuple[Any, ...]:
    """What a row shares with those of other multiples."""
    return (*(row[field.name] for field in fields(Cell)), row["library"], row["seed"])


def run(rows: Rows, cells: list[Cell], contestants: list[Contestant], chosen: argparse.Namespace) -> None:
    """Train what is missing: the peers at every multiple with the first seed, at the best with the others."""

    def train(c: Contestant, cell: Cell, multiple: float, seed: int) -> None:
        wanted = key(c, cell, multiple, seed)
        if rows.find(wanted) is not None:
            return
        try:
            row = trained(c, cell, multiple, seed, chosen.threads)
            told = f"L0 {row['test']['l0']:.2f}, FVU {row['test']['fvu']:.4f}, at k {row['at_k']['test']['fvu']:.4f}"
        except WorkerError as error:
            row, told = wanted | {"note": str(error)}, str(error)
        rows.add(row)
        print(f"{time.strftime('%H:%M:%S')} {c.name} {cell} × {multiple:g}, seed {seed}: {told}", file=sys.stderr)

    for cell, c in itertools.product(cells, contestants):
        for multiple in (1.0,) if c.library == "sae" else chosen.multiples:
            train(c, cell, multiple, chosen.seeds[0])
        found = best_of(rows.content["rows"], cell).get(c.name)
        for seed in chosen.seeds[1:] if found else ():
            train(c, cell, found["multiple"], seed)


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS, choices=LAYERS)
    parser.add_argument("--latents", type=int, nargs="+", default=[4608])
    parser.add_argument("--k", type=int, nargs="+", default=[32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--batch", type=int, default=4096, help="tokens per step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--multiples", type=float, nargs="+", default=[3.0, 10.0], help="of a peer's own learning rate")
    names = [c.name for c in FAMILY_CONTESTANTS]
    parser.add_argument("--members", nargs="+", choices=names, default=names, metavar="'LIBRARY MEMBER'")
    parser.add_argument("--threads", type=int, default=machine.available_cores())
    parser.add_argument("--out", type=Path, default=RESULTS / "members.json")
    parser.add_argument("--show", action="store_true", help="print the tables of --out, and train nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows = Rows(chosen.out)
    if not chosen.show:
        contestants = [c for c in FAMILY_CONTESTANTS if c.name in chosen.members]
        rows.content["machine"] = machine.describe("cpu", chosen.threads)
        rows.content["versions"] = rows.content.get("versions", {}) | machine.versions([c.library for c in contestants])
        rows.content["date"] = time.strftime("%Y-%m-%d")
        rows.check_text("english", hashlib.sha256(token_file("english").read_bytes()).hexdigest())
        sizes = itertools.product(chosen.layers, chosen.latents, chosen.k, chosen.tokens)
        run(rows, [Cell("english", *size, chosen.batch) for size in sizes], contestants, chosen)
    for cell in cells_of(rows.content["rows"]):
        print(json.dumps(asdict(cell)))
        print("\n".join([*table(rows.content["rows"], cell), ""]))


if __name__ == "__main__":
    main()
