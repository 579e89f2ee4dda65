"""Rows of the table: the whole trainer on a language model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import inputs
from benchmarks.harness.language_models import RANDOM
from benchmarks.harness.measure import interleave
from benchmarks.harness.pool import warm_workers
from benchmarks.harness.report import Row
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import MODEL_CONTESTANTS, OURS, Contestant
from benchmarks.harness.worker import Job
from sae import lm


@dataclass(frozen=True)
class Run:
    """A model, and what is trained on it."""

    name: str
    model: str
    """A name in `language_models.RANDOM`, or `smollm2`."""
    layers: tuple[int, ...]
    expansion_factor: int
    k: int
    batch_size: int
    """Sequences per step."""
    ctx_len: int
    device: str
    contestants: tuple[Contestant, ...] = MODEL_CONTESTANTS


RUNS = (
    Run("smollm2, layers 5 10 15", "smollm2", (5, 10, 15), 8, 32, 8, inputs.CTX_LEN, "cpu"),
    Run("smollm2, all layers", "smollm2", tuple(range(30)), 8, 32, 8, inputs.CTX_LEN, "cpu", (OURS,)),
    Run("pythia-160m size, 12 layers", "pythia-160m", tuple(range(12)), 32, 32, 16, 2048, "cuda"),
    Run("llama-3-8b size, layer 16", "llama-3-8b", (16,), 32, 192, 8, 2048, "cuda"),
)
TINY = Run("tiny, all layers", "tiny", (0, 1, 2), 4, 4, 4, 32, "cpu")
SEQUENCES = 4000
"""Random sequences, for models with random weights."""


def end_to_end_rows(
    runs: Sequence[Run], libraries: Sequence[str], settings: Settings, named: Sequence[str] = ()
) -> Iterator[Row]:
    """Tokens per second of each library's trainer for transformers' models, in all settings or the `named`."""
    for run in runs:
        contestants = [c for c in run.contestants if c.library in libraries and run.device in c.devices]
        contestants = [c for c in contestants if not named or c.setting in named]
        if run.device == "cuda" and settings.device != "cuda":
            yield from _unmeasured(run, contestants, "not measured: needs a CUDA device")
            continue
        try:
            model, tokens = _model_and_tokens(run)
        except inputs.NoModelError as error:
            yield from _unmeasured(run, contestants, f"not measured: {error}")
            continue
        yield from _rows(run, contestants, model, tokens, settings)


def _rows(run: Run, contestants: Sequence[Contestant], model: str, tokens: Path, settings: Settings) -> Iterator[Row]:
    jobs = {c.name: _job(c, run, model, tokens, settings) for c in contestants}
    with warm_workers(jobs, settings.turn_seconds) as (workers, failed):
        turns = interleave({name: worker.turn for name, worker in workers.items()}, settings.repeats)
        peaks = {name: worker.peak() for name, worker in workers.items()}
    for c in contestants:
        memory, reason = peaks.get(c.name, {}), failed.get(c.name, "")
        yield Row.of("end to end", run.name, _tokens(run), c, turns.get(c.name, ()), note=reason, **memory)


def _unmeasured(run: Run, contestants: Sequence[Contestant], reason: str) -> Iterator[Row]:
    for c in contestants:
        yield Row.of("end to end", run.name, _tokens(run), c, note=reason)


def _model_and_tokens(run: Run) -> tuple[str, Path]:
    if run.model in RANDOM:
        vocab_size = RANDOM[run.model][1]["vocab_size"]
        return run.model, inputs.random_tokens(vocab_size, SEQUENCES, run.ctx_len)
    return str(inputs.model_folder()), inputs.tokens()


def _job(c: Contestant, run: Run, model: str, tokens: Path, settings: Settings) -> Job:
    options = dict(c.options) | {
        "model": model,
        "model_dtype": str(lm.compute_dtype(torch.device(settings.device))).removeprefix("torch."),
        "tokens": str(tokens),
        "layers": list(run.layers),
        "expansion_factor": run.expansion_factor,
        "batch_size": run.batch_size,
    }
    return Job(c.library, options, k=run.k, tokens=_tokens(run), device=settings.device, threads=settings.threads)


def _tokens(run: Run) -> int:
    return run.batch_size * run.ctx_len
