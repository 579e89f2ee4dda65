"""Rows of the table: held-out FVU after equal tokens. Speed that costs quality does not count."""

import dataclasses
from collections.abc import Iterator, Sequence

from benchmarks.harness.measure import Summary
from benchmarks.harness.pool import Worker, WorkerError
from benchmarks.harness.report import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import QUALITY_CONTESTANTS, SIGNUM, Contestant, Shape
from benchmarks.harness.worker import Job
from benchmarks.speed.steps import activations_of, job_of

STEPS = 200
SEEDS = (0, 1, 2)
EQUAL_LR = 1e-3


def quality_rows(
    shape: Shape, tokens: int, libraries: Sequence[str], settings: Settings, *, steps: int, seeds: Sequence[int]
) -> Iterator[Row]:
    """Everybody at its own optimizer, rate and schedule; then everybody with Adam at one rate, warmed up and constant.

    All see the same activations in the same order, and are measured by the same code on the same held-out ones.
    """
    tasks = ((f"{shape.name}, own defaults", None), (f"{shape.name}, Adam", EQUAL_LR))
    for task, lr in tasks:
        for c in QUALITY_CONTESTANTS:
            if c.library in libraries and not (lr is not None and c == SIGNUM):
                yield _row(task, c, shape, tokens, lr, settings, steps, seeds)


def _row(
    task: str,
    c: Contestant,
    shape: Shape,
    tokens: int,
    lr: float | None,
    settings: Settings,
    steps: int,
    seeds: Sequence[int],
) -> Row:
    train, held_out = map(str, activations_of(shape, tokens))
    job = dataclasses.replace(job_of(c, shape, tokens, train, settings), held_out=held_out, lr=lr, steps=steps)
    rate = f", lr {lr:g}" if lr is not None else ""
    try:
        values = [_held_out_fvu(dataclasses.replace(job, seed=seed)) for seed in seeds]
    except WorkerError as error:
        return Row.of("quality", task, tokens, c, note=str(error))
    note = f"{steps} steps{rate}, {len(seeds)} seeds"
    return Row.of("quality", task, tokens, c, fvu=Summary.of(values), note=note)


def _held_out_fvu(job: Job) -> float:
    with Worker(job) as worker:
        worker.train(job.steps)
        return worker.held_out_fvu()
