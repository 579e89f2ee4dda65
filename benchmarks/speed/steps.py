"""Rows of the table: one training step of one autoencoder on given activations, everybody interleaved."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.harness import inputs
from benchmarks.harness.measure import Turn, available_bytes, interleave
from benchmarks.harness.pool import warm_workers
from benchmarks.harness.report import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import OURS, STEP_CONTESTANTS, Contestant, Shape
from benchmarks.harness.worker import Job

DATA_STEPS = 4
"""Synthetic batches that a run goes through in turn."""
REAL_TOKENS = 204800
RESIDENT = {"sae": 13, "product": 2, "sparsify": 16, "dictionary_learning": 16, "sae_lens": 16}
"""Bytes that stay for each parameter between steps: weights and two moments in fp32; with us a bf16 or int8 copy of the
encoder, with the others the gradient."""
PASSING = {"sae": 1, "product": 0, "sparsify": 4, "dictionary_learning": 4, "sae_lens": 4}
"""… and those that come and go within one: a copy of a matrix or two."""
LIVE_PRE_ACTS = {"sae": 0.1, "product": 0.1, "sparsify": 3, "dictionary_learning": 6, "sae_lens": 10}
"""How many fp32 tensors (tokens, latents) a library holds at once, roughly: only to see whether it fits."""


def step_rows(shape: Shape, tokens: int, contestants: Sequence[Contestant], settings: Settings) -> Iterator[Row]:
    """One row per contestant, measured or with the reason why not."""
    groups, reasons = plan(contestants, shape, tokens, _free_bytes(settings.device), settings.device)
    train = str(activations_of(shape, tokens)[0]) if groups else ""
    turns: dict[str, list[Turn]] = {}
    peaks: dict[str, dict[str, int | None]] = {}
    for group in groups:
        jobs = {c.name: job_of(c, shape, tokens, train, settings) for c in group}
        with warm_workers(jobs, settings.turn_seconds) as (workers, failed):
            taken = interleave({name: worker.turn for name, worker in workers.items()}, settings.repeats)
            peaks |= {name: worker.peak() for name, worker in workers.items()}
        reasons |= failed
        for name, new in taken.items():
            turns.setdefault(name, []).extend(new)
    for c in contestants:
        memory, reason = peaks.get(c.name, {}), reasons.get(c.name, "")
        yield Row.of("step", shape.name, tokens, c, turns.get(c.name, ()), note=reason, **memory)


def contestants_for(device: str, libraries: Sequence[str], named: Sequence[str] = ()) -> list[Contestant]:
    """Those that take part on this device, of these libraries, in all of their settings or in those that are named."""
    of_libraries = [c for c in STEP_CONTESTANTS if device in c.devices and c.library in (*libraries, "product")]
    return [c for c in of_libraries if not named or c.setting in named]


def activations_of(shape: Shape, tokens: int) -> tuple[Path, Path]:
    """The files for training and for evaluation."""
    count = REAL_TOKENS if shape.real else DATA_STEPS * tokens
    return inputs.activations(shape.d_in, count, real=shape.real)


def job_of(c: Contestant, shape: Shape, tokens: int, train: str, settings: Settings) -> Job:
    """What the worker is told."""
    return Job(
        library=c.library,
        options=dict(c.options),
        d_in=shape.d_in,
        num_latents=shape.num_latents,
        k=shape.k,
        tokens=tokens,
        activations=train,
        device=settings.device,
        threads=settings.threads,
    )


def plan(
    contestants: Sequence[Contestant], shape: Shape, tokens: int, free: int | None, device: str
) -> tuple[list[list[Contestant]], dict[str, str]]:
    """Groups that are interleaved, and why those who are in none are not.

    One group if all fit into memory side by side. Else each peer alone with us: we run in every group. Where that is
    too much too, everybody who fits runs alone, one after the other.
    """
    resident = {c.name: _resident_bytes(c, shape) for c in contestants}
    working = {c.name: _working_bytes(c, shape, tokens) for c in contestants}

    def fits(group: Sequence[Contestant]) -> bool:
        together = max if device == "cpu" else sum  # a sleeping process gives memory back on a CPU only
        return free is None or sum(resident[c.name] for c in group) + together(working[c.name] for c in group) <= free

    if fits(contestants):
        return [list(contestants)], {}
    always = [c for c in contestants if c == OURS or c.library == "product"]
    others = [c for c in contestants if c not in always]
    groups = [[*always, c] for c in others if fits([*always, c])]
    if not groups:
        groups = [[c] for c in contestants if fits([c])]
    grouped = {c.name for group in groups for c in group}
    return groups, {
        c.name: _does_not_fit(resident[c.name] + working[c.name], free) for c in contestants if c.name not in grouped
    }


def _does_not_fit(needed: int, free: int | None) -> str:
    return f"not measured: needs about {needed / 1e9:.0f} GB, {(free or 0) / 1e9:.0f} GB are free"


def _resident_bytes(c: Contestant, shape: Shape) -> int:
    return 300 * 2**20 + RESIDENT[c.library] * shape.num_parameters


def _working_bytes(c: Contestant, shape: Shape, tokens: int) -> int:
    gathered = 2 * tokens * shape.k * shape.d_in * 4 if c.library == "sparsify" else 0
    return (
        PASSING[c.library] * shape.num_parameters
        + gathered
        + int(LIVE_PRE_ACTS[c.library] * tokens * shape.num_latents * 4)
    )


def _free_bytes(device: str) -> int | None:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else available_bytes()
