"""The trainer: composes the language model, the data, the autoencoders and the logs, and reads top to bottom."""

import copy
import math
import time
import zlib
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from sae import checkpoint, lm
from sae.autoencoder import Sae
from sae.config import SaeConfig, TrainConfig
from sae.data.activations import Activations, counted
from sae.data.place import whole
from sae.data.shuffle import ShuffleBuffer, batches_per_block
from sae.distributed import World
from sae.end_to_end import EndToEnd, TokenSource
from sae.evaluation.evaluate import evaluate_many
from sae.evaluation.outliers import outlier_warning
from sae.evaluation.reconstruction import ReconstructionMetrics, evaluate_reconstruction
from sae.feed import LiveFeed, count_steps, open_feed
from sae.interrupt import StopRequests
from sae.learner import SaeLearner
from sae.log import JsonLines, Progress, Record, Sink, Stopwatch, WandbSink, note, why_no_wandb
from sae.memory import free_memory
from sae.optim import Recipe, peak_lr, schedule, warmup_steps
from sae.report.training import report
from sae.run import RunFolder
from sae.saver import Saver
from sae.sweep import SaePlan, check_memory, plan_saes

T = TypeVar("T")

EVAL_TOKENS = 16_384
"""Held-out tokens that --eval_every measures on, at most, and at least a batch."""


class SaeTrainer:
    """Trains one autoencoder per hookpoint of `model` on `dataset`, all at once.

    `dataset` is tokenised: rows of `input_ids` of one length, as `sae.data.chunk_and_tokenize` returns them, a tensor
    (sequences, ctx_len), or a stream of such rows. `model` is any model of transformers; it is not changed. Or
    `dataset` is an `sae.data.ActivationCache`, and there is no model: training cannot tell the difference. The
    autoencoders are in `saes`, by name; `plans` says which hookpoint each reads.
    """

    def __init__(self, cfg: TrainConfig, dataset: Any, model: nn.Module | None = None) -> None:
        """Raises ValueError, naming the option, for a choice that does not fit the model or the data."""
        self.cfg, self.model = cfg, model
        self.world = World.from_environment(distribute_layers=cfg.distribute_layers)
        self.stop = StopRequests()
        self.feed = open_feed(cfg, dataset, model, wait=self.stop.wait)
        self.device = self.feed.device
        self.tokens_per_step = cfg.batch_size * self.feed.ctx_len * cfg.grad_acc_steps
        self.total_steps = count_steps(cfg, self.feed)

        self.plans = plan_saes(cfg, self.feed.widths)
        if len(self.plans) > len(self.feed.widths):
            note(check_memory(self.plans, self.feed.widths, free_memory(self.device)))
        self.saes = self._make_saes()
        self.learners = {
            name: SaeLearner(
                sae,
                tokens_per_step=self.tokens_per_step,
                auxk_alpha=cfg.auxk_alpha,
                dead_feature_threshold=dead_threshold(cfg, self.total_steps * self.tokens_per_step),
                compute_dtype=lm.compute_dtype(self.device),
                recipe=Recipe.named(cfg.recipe, self.total_steps),
                encode_in_8bit=cfg.encode_in_8bit,
            )
            for name, sae in self.saes.items()
        }
        self.source, self.end_to_end = self._make_source()
        self.step = self.first_step = 0
        self._position: dict[str, Any] | None = self.source.state_dict()
        """Where the data of the next step begin; None in the middle of an update, when there is no state to save."""
        self.stopwatches = {name: Stopwatch(self.device) for name in self.saes}
        self.folder = RunFolder.plan(
            cfg,
            model_name=self.feed.model_name,
            checkpoint_bytes=checkpoint.size_on_disk(self.saes),
            total_steps=self.total_steps,
        )
        self.saver = Saver(self.folder.path, keep_last=self.folder.keep_last)

    # Training

    def fit(self) -> Path:
        """Train to the end of the data or of `max_tokens`; returns the folder of the last checkpoint.

        Ctrl-C and SIGTERM save and end early. Raises FloatingPointError, naming the hookpoint, the step and the place,
        when activations or a loss are not finite. After any error the last good state is saved first.
        """
        if self.cfg.resume:
            self.resume()
        if self.step == 0:
            self.initialise()  # the first look at the data: what is wrong with it shows before anything is written
        self.folder.claim(self.cfg, self.describe())
        if self.folder.keep_last != self.cfg.keep_last:
            note(f"keeping the newest {self.folder.keep_last} checkpoints: all would take over half of the free disk")
        try:
            with ExitStack() as stack:
                sinks = self._open_sinks(stack)
                progress = stack.enter_context(
                    Progress(total=self.total_steps * self.tokens_per_step, done=self.step * self.tokens_per_step)
                )
                stack.enter_context(self.stop)
                self._train(sinks, progress)
            saved = self.save(measure=self.cfg.save_best)
        except Exception as error:
            error.add_note(self._save_what_is_left())
            raise
        if self.stop:
            note(f"stopped at step {self.step} of {self.total_steps}; saved in {saved}")
        else:
            report(self.folder.path, saved, self.evaluate(), self.step * self.tokens_per_step, self._speeds())
        return saved

    def _train(self, sinks: list[Sink], progress: Progress) -> None:
        started, self.first_step = time.perf_counter(), self.step
        while self.step < self.total_steps and not self.stop and self.train_step():
            progress.advance(self.tokens_per_step)
            if self._every(self.cfg.wandb_log_frequency, self.cfg.eval_every) or self.step == self.total_steps:
                self._log(sinks, progress, seconds=time.perf_counter() - started)
            if self.step % self.cfg.save_every == 0:
                self.saver.start(self.state(measure=self.cfg.save_best))
            self.saver.check()
        if self.step == 0 and not self.stop:
            raise ValueError(
                f"the data must hold one step of {self.tokens_per_step} tokens, but the stream ended before; "
                "give more text, or lower --batch_size, --ctx_len or --grad_acc_steps"
            )
        if self.step < self.total_steps and not self.stop:
            note(
                f"the data ended at step {self.step} of {self.total_steps}, before the learning rate had decayed; "
                f"next time give --max_tokens {self.step * self.tokens_per_step}"
            )
            if not self._every(self.cfg.wandb_log_frequency, self.cfg.eval_every):
                self._log(sinks, progress, seconds=time.perf_counter() - started)

    def _speeds(self) -> dict[str, float]:
        """Tokens per second of each autoencoder's own training, since this process started; NaN if it trained none."""
        tokens = (self.step - self.first_step) * self.tokens_per_step
        return {name: tokens / watch.read() if tokens else math.nan for name, watch in self.stopwatches.items()}

    def _log(self, sinks: list[Sink], progress: Progress, *, seconds: float) -> None:
        tokens = (self.step - self.first_step) * self.tokens_per_step
        record = self.metrics(tokens_per_second=tokens / seconds)
        if self._every(self.cfg.eval_every):
            record |= self.evaluate_grafted()
        progress.show(record)
        for sink in sinks:
            sink.write(record)

    def _every(self, *periods: int) -> bool:
        """Whether one of these periods, in steps, ends here; 0 never does."""
        return any(period and self.step % period == 0 for period in periods)

    def initialise(self) -> None:
        """Set every b_dec to the mean of the first activations, and every loss's normaliser to their variance."""
        first, held_out = self._by_sae(self.source.peek()), next(self.feed.held_out_batches())
        if not len(next(iter(first.values()))) or not len(held_out.kept):
            raise ValueError(
                "--exclude_tokens and --exclude_positions must leave some tokens to train on and to hold out, got none "
                "of the first batches; exclude fewer"
            )
        for name, learner in self.learners.items():
            learner.initialise(first[name], new=self.cfg.finetune is None)
        for hookpoint, activations in held_out.activations.items():
            if warning := outlier_warning(activations, held_out.tokens, held_out.kept):
                note(f"{hookpoint}: {warning}")

    def train_step(self) -> bool:
        """One optimizer step of every autoencoder; False, and nothing done, if the data ended before."""
        for _ in range(self.cfg.grad_acc_steps):
            batch = next(self.source, None)
            if batch is None:
                return False
            self._accumulate(batch)
        self._position = None
        for name, learner in self.learners.items():
            with self.stopwatches[name]:
                learner.update(self.learning_rate(name))
        self.step += 1
        self._position = self.source.state_dict()
        return True

    def _accumulate(self, batch: Any) -> None:
        if self.end_to_end is not None:
            with ExitStack() as stack:
                for watch in self.stopwatches.values():
                    stack.enter_context(watch)
                for part in batch.tensor_split(self.cfg.micro_acc_steps):
                    self.end_to_end.accumulate(part)
            return
        activations = self._by_sae(batch)
        for name, learner in self.learners.items():
            with self.stopwatches[name]:
                for part in activations[name].tensor_split(self.cfg.micro_acc_steps):
                    learner.accumulate(part)

    def learning_rate(self, name: str) -> float:
        """The learning rate of an autoencoder in the step that comes next."""
        warmup = warmup_steps(self.total_steps, self.cfg.lr_warmup_steps)
        return self._peak_lr(name) * schedule(self.step, self.total_steps, warmup)

    def _peak_lr(self, name: str) -> float:
        lr = self.plans[name].lr
        return peak_lr(self.saes[name].num_latents, self.total_steps, self.cfg.recipe) if lr is None else lr

    # What is reported

    def metrics(self, *, tokens_per_second: float) -> Record:
        """What happened since the last record, by autoencoder. Waits for the device.

        Raises FloatingPointError, naming the autoencoder and the step, if a loss was not finite.
        """
        record: Record = {
            "step": self.step,
            "tokens": self.step * self.tokens_per_step,
            "tokens_per_second": tokens_per_second,
        }
        if self.end_to_end is not None:
            record["loss"] = self.end_to_end.read_loss()
        not_finite = None
        for name, learner in self.learners.items():
            try:
                metrics = learner.read_metrics()
            except FloatingPointError as error:  # the others' meters start anew too, so that the state can be saved
                place = f"step {self.step}"
                if self.end_to_end is None:
                    place += f", before batch {self.feed.batch_index} of the data"
                not_finite = not_finite or FloatingPointError(f"{name}: {error} at {place}; try a lower --lr")
                continue
            record |= {f"{name}/{metric}": value for metric, value in metrics._asdict().items()}
            if (recall := learner.read_recall()) is not None:
                record[f"{name}/recall"] = recall
        if not_finite:
            raise not_finite
        return record

    def evaluate(self) -> dict[str, ReconstructionMetrics]:
        """Reconstruction of the held-out tokens, by autoencoder."""
        batches = (self._by_sae(batch.activations) for batch in self.feed.held_out_batches())
        return evaluate_reconstruction(self.saes, batches)

    def evaluate_grafted(self) -> Record:
        """What `sae eval` measures, on the first held-out tokens: `<name>/eval_<metric>`, and `all/…` at once."""
        count = max(1, EVAL_TOKENS // (self.cfg.batch_size * self.feed.ctx_len))
        found = evaluate_many(
            self._live.model,
            list(islice(self._live.tokens.held_out_batches(), count)),
            self._by_configuration(self.saes),
            exclude_tokens=self.cfg.exclude_tokens,
            exclude_positions=self.cfg.exclude_positions,
        )
        return {
            f"{label}/{hookpoint}/eval_{metric}".lstrip("/"): value
            for (label, hookpoint), quality in found.qualities.items()
            for metric, value in quality.metrics.items()
            if math.isfinite(value)
        }

    def describe(self) -> dict[str, Any]:
        """What config.json says beside the configuration: what was derived from model and data."""
        return {
            "hookpoints": {
                name: {"d_in": sae.d_in, "num_latents": sae.num_latents, "k": sae.cfg.k}
                for name, sae in self.saes.items()
            },
            "total_steps": self.total_steps,
            "tokens_per_step": self.tokens_per_step,
            "data_seed": self.feed.data_seed,
            "held_out_sequences": self.feed.held_out,
            "num_sequences": self.feed.num_sequences,
            "ctx_len": self.feed.ctx_len,
            "shuffle_block_batches": self._batches_per_block(),
            "peak_lr": {name: self._peak_lr(name) for name in self.saes},
        }

    def _open_sinks(self, stack: ExitStack) -> list[Sink]:
        sinks: list[Sink] = [JsonLines(self.folder.metrics, keep_until_step=self.step)]
        if self.cfg.log_to_wandb:
            if reason := why_no_wandb():
                note(f"not logging to Weights & Biases: {reason}; metrics go to {self.folder.metrics}")
            else:
                sinks.append(WandbSink(name=self.folder.path.name, config=self.describe(), folder=self.folder.path))
        for sink in sinks:
            stack.callback(sink.close)
        return sinks

    # State

    def state(self, *, measure: bool = False) -> checkpoint.Checkpoint:
        """The state between two steps; with `measure` the held-out FVU is part of it, unless there is haste."""
        states = {name: learner.state_dict() for name, learner in self.learners.items()}
        trainer = {"step": self.step, "source": self._position}
        if self.end_to_end is not None:
            trainer["end_to_end"] = self.end_to_end.state_dict()
        if measure and not self.stop:
            trainer["held_out_fvu"] = {name: metrics.fvu for name, metrics in self.evaluate().items()}
        return checkpoint.Checkpoint(self.saes, states, trainer)

    def save(self, *, measure: bool = False) -> Path:
        """Write a checkpoint and wait until it is on disk; returns its folder."""
        folder = self.saver.start(self.state(measure=measure))
        self.saver.wait()
        return folder

    def _save_what_is_left(self) -> str:
        """Save after an error, if that is still possible; what to tell the user."""
        with suppress(OSError, FloatingPointError):
            self.saver.wait()
        if self._position is not None:
            try:
                return f"stopped at step {self.step}; the state before is saved in {self.save()}"
            except (OSError, FloatingPointError):
                pass  # such as the full disk that brought us here
        return f"stopped at step {self.step}, not saved; the last checkpoint is {checkpoint.latest(self.folder.path)}"

    def resume(self) -> None:
        """Continue from the newest undamaged checkpoint of this run; from the beginning if there is none."""
        folder, complaints = checkpoint.newest_undamaged(self.folder.path)
        for complaint in complaints:
            note(f"passed over: {complaint}")
        checkpoint.set_damaged_aside(self.folder.path, folder)
        if folder is None:
            note(f"no checkpoint in {self.folder.path} yet: starting at the beginning")
        else:
            self.load(folder)
            note(f"continuing from {folder}")

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint of a run with the same configuration. Raises ValueError if it is damaged."""
        saved = checkpoint.load(folder, self.state())
        for name, learner in self.learners.items():
            self.saes[name].load_state_dict(saved.saes[name].state_dict())
            learner.load_state_dict(saved.states[name])
        with checkpoint.understood(folder):
            self.source.load_state_dict(saved.trainer["source"])
            if self.end_to_end is not None:
                self.end_to_end.load_state_dict(saved.trainer["end_to_end"])
            self._position = self.source.state_dict()
            self.step = whole(saved.trainer, "step", self.total_steps)

    # Set-up

    def _make_saes(self) -> dict[str, Sae]:
        if self.cfg.finetune is not None:
            found = Sae.load_many(self.cfg.finetune, self.feed.widths, self.device)
            return {name: self._continued(plan, found[plan.hookpoint]) for name, plan in self.plans.items()}
        return {name: self._new_sae(plan) for name, plan in self.plans.items()}

    def _new_sae(self, plan: SaePlan) -> Sae:
        # A seed of its own, so that an autoencoder does not depend on which others are trained beside it.
        generator = torch.Generator().manual_seed(plan.seed + zlib.crc32(plan.hookpoint.encode()))
        return Sae(self.feed.widths[plan.hookpoint], plan.cfg, device=self.device, generator=generator)

    def _continued(self, plan: SaePlan, sae: Sae) -> Sae:
        """A copy of an autoencoder to start from, which has what the plan asks for."""
        name, source = plan.hookpoint, self.cfg.finetune
        for option, default in vars(SaeConfig()).items():
            given, found = getattr(plan.cfg, option), getattr(sae, option, getattr(sae.cfg, option))
            if given not in (default, found):
                raise ValueError(
                    f"{option} comes with finetune, and {name} in {source} has {found}, got {given}; "
                    f"leave out --{option}"
                )
        if sae.d_in != self.feed.widths[name]:
            raise ValueError(
                f"finetune: {name} in {source} must be {self.feed.widths[name]} wide, as the model is, "
                f"got {sae.d_in}; is it of another model?"
            )
        return copy.deepcopy(sae).to(torch.float32)

    def _by_sae(self, activations: Activations) -> Activations:
        """What each autoencoder reads, by its name."""
        return {name: activations[plan.hookpoint] for name, plan in self.plans.items()}

    def _make_source(self) -> tuple[Any, EndToEnd | None]:
        """Activations, mixed over many sequences; or the sequences themselves for a loss of the whole model."""
        cfg = self.cfg
        if cfg.loss_fn == "fvu":
            return ShuffleBuffer(self.feed.source, self._batches_per_block(), seed=cfg.data_seed), None
        live = self._live
        end_to_end = EndToEnd(
            live.model,
            self._by_configuration(self.learners),
            lambda tokens: counted(tokens, cfg.exclude_tokens, cfg.exclude_positions),
            loss_fn=cfg.loss_fn,
            tokens_per_step=self.tokens_per_step,
        )
        return TokenSource(live.tokens, live.source.read), end_to_end

    @property
    def _live(self) -> LiveFeed:
        """The feed of a run that needs the language model for more than its activations."""
        assert isinstance(self.feed, LiveFeed)  # what else there is refuses such a run
        return self.feed

    def _by_configuration(self, values: Mapping[str, T]) -> dict[str, dict[str, T]]:
        """Values that are by the name of an autoencoder, by its configuration and its hookpoint."""
        grouped: dict[str, dict[str, T]] = {}
        for name, plan in self.plans.items():
            grouped.setdefault(name.removesuffix(plan.hookpoint).rstrip("/"), {})[plan.hookpoint] = values[name]
        return grouped

    def _batches_per_block(self) -> int:
        d_total = sum(self.feed.widths.values())  # the order of tokens must not depend on what is trained on them
        bytes_per_batch = self.cfg.batch_size * self.feed.ctx_len * d_total * self.feed.dtype.itemsize
        return batches_per_block(self.cfg.grad_acc_steps, bytes_per_batch)


def dead_threshold(cfg: TrainConfig, total_tokens: int) -> int:
    """Tokens without firing after which a latent is dead: chosen, or derived from the run's length."""
    if cfg.dead_feature_threshold is not None:
        return cfg.dead_feature_threshold
    return 10_000_000 if cfg.recipe == "gao2024" else min(10_000_000, max(1, total_tokens // 20))
