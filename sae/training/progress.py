"""What a run tells while it goes on: the bar, metrics.jsonl, Weights & Biases, how fast it is, and config.json."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Any

import torch

from sae.activations.store import ActivationStore
from sae.runs.folder import RunFolder
from sae.runs.log import Detached, JsonLines, Progress, Record, Sink, Stopwatch, WandbSink, note, why_no_wandb
from sae.training.learner import SaeLearner
from sae.training.run_plan import LearnerPlan, RunPlan, Stage


class Speed:
    """How fast a run is since this process began to train, in all and in each autoencoder's own training."""

    def __init__(self, names: Iterable[str], device: torch.device) -> None:
        self.stopwatches = {name: Stopwatch(device) for name in names}
        self._started, self._first_step, self._looked = 0.0, 0, 0.0

    @contextmanager
    def timing(self, names: Iterable[str]) -> Iterator[None]:
        """The time inside is that of these autoencoders' training."""
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(self.stopwatches[name])
            yield

    def look(self, seconds: float) -> None:
        """Count the time of the first look. It reads the first block of activations, which the run's speed includes."""
        self._looked = seconds

    def start(self, step: int) -> None:
        """Training begins now, with this step."""
        self._started, self._first_step = time.perf_counter() - self._looked, step

    def steps(self, step: int) -> int:
        """Steps that this process has made."""
        return step - self._first_step

    def seconds(self) -> float:
        """Seconds since training began."""
        return time.perf_counter() - self._started


class RunLog:
    """The bar and the sinks of a run, on the main process. Entered for the time of training."""

    def __init__(self, plan: RunPlan, sinks: list[Sink], *, step: int, hidden: bool) -> None:
        """`step` is the one that the run is at; `hidden` means no bar."""
        self._sinks, self._tokens = sinks, plan.steps.tokens
        self._bar = Progress(total=plan.total_tokens, done=step * plan.steps.tokens, hidden=hidden)

    def __enter__(self) -> "RunLog":
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, trace)

    def advance(self) -> None:
        """A step is done."""
        self._bar.advance(self._tokens)

    def write(self, record: Record) -> None:
        """Tell the metrics of a log step."""
        self._bar.show(record)
        for sink in self._sinks:
            sink.write(record)


def open_sinks(folder: RunFolder, config: dict[str, Any], stack: ExitStack, *, step: int, wandb: bool) -> list[Sink]:
    """metrics.jsonl, and Weights & Biases if that is wanted and can be; `stack` closes them."""
    sinks: list[Sink] = [JsonLines(folder.metrics, keep_until_step=step)]
    if wandb:
        if reason := why_no_wandb():
            note(f"not logging to Weights & Biases: {reason}; metrics go to {folder.metrics}")
        else:
            make = partial(WandbSink, name=folder.path.name, config=config, folder=folder.path)
            sinks.append(Detached(make, what="Weights & Biases", instead=folder.metrics))
    for sink in sinks:
        stack.push(partial(_close, sink))
    return sinks


def _close(sink: Sink, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
    """Finish with a sink. Who ends the run at once does not wait for a service."""
    if not (isinstance(sink, Detached) and kind is KeyboardInterrupt):
        sink.close()


def read_metrics(learner: SaeLearner, *, recall: bool) -> dict[str, float] | FloatingPointError:
    """An autoencoder's metrics since the last reading, or what is wrong with it. Waits for the device.

    `recall`: with that of candidates in 8 bits, if it uses them.
    """
    try:
        metrics = learner.read_metrics()._asdict()
    except FloatingPointError as error:
        return error
    share = learner.read_recall() if recall else None
    at = learner.read_by_hookpoint()
    metrics |= {f"fvu/{hookpoint}": value for hookpoint, value in at.items()} if learner.sae.cfg.crosscode else {}
    return metrics if share is None else metrics | {"recall": share}


def speeds(tokens: int, seconds: Mapping[str, float]) -> dict[str, float]:
    """Tokens per second of each autoencoder's own training; NaN if it was trained on none."""
    return {name: tokens / seconds[name] if tokens else math.nan for name in seconds}


def derived_rates(plan: RunPlan, learners: Mapping[Stage, Mapping[str, LearnerPlan]]) -> str:
    """A line with the peak learning rates that were derived, by stage; empty if all were given."""
    told = []
    for stage, plans in learners.items():
        own = stage.loss_fn == plan.cfg.loss_fn
        found = sorted({plans[name].peak_lr for name, each in plan.saes.items() if each.lr is None or not own})
        if found:
            several = f" to {found[-1]:.3g}" if len(found) > 1 else ""
            steps = "step" if stage.total == 1 else "steps"
            what = "" if len(learners) == 1 else (" end to end" if own else " of reconstruction")
            told.append(f"{found[0]:.3g}{several}, derived from the latents and {stage.total:,} {steps}{what}")
    return f"peak learning rate {', then '.join(told)}" if told else ""


def derived(
    plan: RunPlan,
    store: ActivationStore,
    learners: Mapping[str, LearnerPlan],
    *,
    processes: int,
    fingerprints: dict[str, str],
) -> dict[str, Any]:
    """What config.json says beside the configuration: what was derived from model and data."""
    return {
        "hookpoints": {
            name: {"d_in": shape.d_in, "num_latents": shape.num_latents, "k": shape.cfg.k}
            for name, (shape, _, _) in learners.items()
        },
        "processes": processes,
        "batches_per_step": plan.steps.batches_at_once,
        "steps_per_batch": plan.steps.per_batch,
        "total_steps": plan.steps.total,
        "reconstruction_steps": plan.stages[0].stop if len(plan.stages) > 1 else 0,
        "tokens_per_step": plan.steps.tokens,
        "data_seed": store.data_seed,
        "held_out_sequences": store.held_out,
        "held_out_by": store.held_out_by,
        "num_sequences": store.num_sequences,
        "ctx_len": store.ctx_len,
        "read_with": store.read_with,
        "shuffle_block_batches": plan.steps.batches_per_block,
        "shuffle_first_batches": plan.steps.batches_of_first_block,
        "peak_lr": {name: learner.peak_lr for name, learner in learners.items()},
        "fingerprints": fingerprints,
    }
