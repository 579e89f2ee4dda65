"""The trainer: composes the language model, the data, the autoencoders and the logs, and reads top to bottom."""

import math
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from sae import lm
from sae.activations.feed import LiveFeed, count_steps, model_name, open_feed
from sae.activations.sequences import SequenceSource
from sae.activations.shuffle import ShuffleBuffer, batches_per_block
from sae.activations.source import Activations, counted
from sae.config import SaeConfig, TrainConfig
from sae.data.position import whole
from sae.dictionary.autoencoder import Sae, SaePart
from sae.evaluation.evaluate import evaluate_many
from sae.evaluation.outliers import massive_note
from sae.evaluation.reconstruction import ReconstructionMetrics, evaluate_reconstruction
from sae.ops import native
from sae.parallel.placement import Placement, place
from sae.parallel.world import World
from sae.report.training import report
from sae.runs import checkpoint
from sae.runs.background_save import Saver
from sae.runs.folder import RunFolder, check_sources, continue_after_restart, derived_before
from sae.runs.log import Detached, JsonLines, Progress, Record, Sink, Stopwatch, WandbSink, note, why_no_wandb
from sae.runs.stop_signals import StopRequests
from sae.training.end_to_end import EndToEnd
from sae.training.learner import FIRST_TOKENS, SaeLearner, is_per_latent
from sae.training.memory import free_memory
from sae.training.recipe import Recipe, firings, peak_lr, schedule, steps_per_batch, warmup_steps
from sae.training.run_plan import SaePlan, check_memory, plan_saes

T = TypeVar("T")

PAPERS_DEAD_THRESHOLD = 10_000_000
"""Tokens without firing after which AuxK takes a latent for dead: Gao et al. 2024, arXiv:2406.04093, app. A.2."""
EVAL_TOKENS = 16_384
"""Held-out tokens that --eval_every measures on, at most, and at least a batch."""


class SaeTrainer:
    """Trains one autoencoder per hookpoint of `model` on `dataset`, all at once.

    `dataset` is tokenised: rows of `input_ids` of one length, as `sae.data.chunk_and_tokenize` returns them, a tensor
    (sequences, ctx_len), or a stream of such rows. `model` is any model of transformers; it is not changed, unless
    `compile_lm` asks to compile its blocks in place. Or `dataset` is an `sae.data.ActivationCache`, and there is no
    model: training cannot tell the difference. The autoencoders are in `saes`, by name; `plans` says which hookpoint
    each reads.
    """

    def __init__(self, cfg: TrainConfig, dataset: Any, model: nn.Module | None = None) -> None:
        """Raises ValueError, naming the option, for a choice that does not fit the model or the data."""
        self.world = world = World.from_environment(shard_latents=cfg.shard_latents)
        check_processes(cfg, world.size)
        name = model_name(dataset, model)
        self.cfg = cfg = world.from_main(partial(continue_after_restart, cfg, name, restarted=world.restarted))
        self._before = before = world.from_main(partial(derived_before, cfg, name))
        self.batches_at_once = before.get("batches_per_step", cfg.grad_acc_steps * world.size)
        """Forward passes, over all processes, whose tokens make `steps_per_batch` steps."""
        self.stop = StopRequests()
        whole = not before or before.get("held_out_by") == "documents"  # runs of earlier versions go on as they began
        self.feed = open_feed(cfg, dataset, model, self.batches_at_once, whole_documents=whole, wait=self.stop.wait)
        self.device = self.feed.device
        tokens = cfg.batch_size * self.feed.ctx_len * self.batches_at_once
        batches = count_steps(cfg, self.feed, self.batches_at_once)
        chosen = before.get("steps_per_batch", 1) if before else cfg.steps_per_batch
        self.steps_per_batch = self._steps_per_batch(batches, tokens, chosen)
        self.tokens_per_step, self.total_steps = tokens // self.steps_per_batch, batches * self.steps_per_batch

        self.plans = plan_saes(cfg, self.feed.widths)
        world.placement = self._place()
        if len(self.plans) > len(self.feed.widths):
            self._note(check_memory(self._held(), self.feed.widths, cfg.recipe, free_memory(self.device)))
        self.saes = self._make_saes()
        """Those that this process holds; all, unless they are distributed."""
        self.shapes = self._merged({name: SaeShape.of(sae, cfg.shard_latents) for name, sae in self.saes.items()})
        self.learners = {
            name: SaeLearner(
                sae,
                tokens_per_step=self.tokens_per_step,
                auxk_alpha=cfg.auxk_alpha,
                dead_feature_threshold=cfg.dead_feature_threshold or PAPERS_DEAD_THRESHOLD,
                report_dead_after=report_dead_after(cfg, self.total_steps * self.tokens_per_step),
                compute_dtype=lm.compute_dtype(self.device),
                recipe=self._recipe(name),
                encode_in_8bit=cfg.encode_in_8bit if cfg.loss_fn == "fvu" else False,
                tokens_per_pass=cfg.batch_size * self.feed.ctx_len // self.steps_per_batch // cfg.micro_acc_steps,
                shards=world.latent_shards(),
            )
            for name, sae in self.saes.items()
        }
        self.source, self.end_to_end = self._make_source()
        self.step = self.first_step = 0
        self._looked = 0.0
        """Seconds of the first look, which reads the first block of activations; the run's speed counts them."""
        self._position: dict[str, Any] | None = self.source.state_dict()
        """Where the data of the next step begin; None in the middle of an update, when there is no state to save."""
        self.stopped = False
        """Whether all processes have agreed to follow a request to stop."""
        self.stopwatches = {name: Stopwatch(self.device) for name in self.saes}
        copies = len(world.placement.replicas(world.rank))  # of which one is written
        self.folder = world.from_main(
            partial(
                RunFolder.plan,
                cfg,
                model_name=name,
                checkpoint_bytes=sum(world.gather(checkpoint.size_on_disk(self.saes))) // copies,
                total_steps=self.total_steps,
            )
        )
        self.saver = Saver(self.folder.path, keep_last=self.folder.keep_last)

    # Training

    def fit(self) -> Path:
        """Train to the end of the data or of `max_tokens`; returns the folder of the last checkpoint.

        Ctrl-C and SIGTERM save and end early. Raises FloatingPointError, naming the hookpoint, the step and the place,
        when activations or a loss are not finite. After any error the last good state is saved first.
        """
        self.fingerprints  # noqa: B018 - processes that do not read the same end here
        with ExitStack() as lock:
            started = time.perf_counter()
            if self.cfg.resume:
                self._lock(lock)
                self.resume()
            if self.step == 0:
                self.initialise()  # the first look at the data: what is wrong with it shows before anything is written
            self._looked = time.perf_counter() - started
            if not self.cfg.resume:
                self._lock(lock)
            return self._fit()

    def _lock(self, stack: ExitStack) -> None:
        self.world.from_main(lambda: stack.enter_context(self.folder.alone(note)))

    def _fit(self) -> Path:
        with ExitStack() as after:  # sinks finish last: a service may take its time, when all is saved and told
            return self._fit_and_report(after)

    def _fit_and_report(self, after: ExitStack) -> Path:
        self.world.from_main(partial(self.folder.claim, self.cfg, self.describe()))
        if self.folder.keep_last != self.cfg.keep_last:
            self._note(
                f"keeping the newest {self.folder.keep_last} checkpoints: all would take over half of the free disk"
            )
        try:
            with ExitStack() as stack:
                sinks = self._open_sinks(after)
                progress = stack.enter_context(
                    Progress(
                        total=self.total_steps * self.tokens_per_step,
                        done=self.step * self.tokens_per_step,
                        hidden=not self.world.is_main,
                    )
                )
                stack.enter_context(self.stop)
                self._train(sinks, progress)
            forced = self.stopped and self.step < self.total_steps  # then every second counts
            saved = self.save(measure=self.cfg.save_best and not forced)
        except Exception as error:
            error.add_note(self._save_what_is_left())
            raise
        if self.stopped:
            self._note(f"stopped at step {self.step} of {self.total_steps}; saved in {saved}")
        else:
            results, speeds = self.evaluate(), self._speeds()
            if self.world.is_main:
                report(self.folder.path, saved, results, self.step * self.tokens_per_step, speeds)
        return saved

    def _train(self, sinks: list[Sink], progress: Progress) -> None:
        started, self.first_step = time.perf_counter() - self._looked, self.step
        while not self._agree_to_stop() and self.step < self.total_steps and self.train_step():
            progress.advance(self.tokens_per_step)
            if self._every(self.cfg.wandb_log_frequency, self.cfg.eval_every) or self.step == self.total_steps:
                self._log(sinks, progress, seconds=time.perf_counter() - started)
            if self.step % self.cfg.save_every == 0:
                self._start_to_save()
            with self.world.together():
                self.saver.check()
        if self.step == 0 and not self.stopped:
            raise ValueError(
                f"the data must hold one step of {self.tokens_per_step} tokens, but the stream ended before; "
                "give more text, or lower --batch_size, --ctx_len or --grad_acc_steps"
            )
        if self.step < self.total_steps and not self.stopped:
            self._note(
                f"the data ended at step {self.step} of {self.total_steps}, before the learning rate had decayed; "
                f"next time give --max_tokens {self.step * self.tokens_per_step}"
            )
            if not self._every(self.cfg.wandb_log_frequency, self.cfg.eval_every):
                self._log(sinks, progress, seconds=time.perf_counter() - started)

    def _agree_to_stop(self) -> bool:
        self.stopped = self.world.any(bool(self.stop))
        return self.stopped

    def _speeds(self) -> dict[str, float]:
        """Tokens per second of each autoencoder's own training, since this process started; NaN if it trained none."""
        tokens = (self.step - self.first_step) * self.tokens_per_step
        seconds = self._merged({name: watch.read() for name, watch in self.stopwatches.items()})
        return {name: tokens / seconds[name] if tokens else math.nan for name in seconds}

    def _log(self, sinks: list[Sink], progress: Progress, *, seconds: float) -> None:
        tokens = (self.step - self.first_step) * self.tokens_per_step
        record = self.metrics(tokens_per_second=tokens / seconds)
        if self._every(self.cfg.eval_every):
            with self.world.together():
                record |= self.evaluate_grafted() if self.world.is_main else {}
        progress.show(record)
        for sink in sinks:
            sink.write(record)

    def _every(self, *periods: int) -> bool:
        """Whether one of these periods, in steps, ends here; 0 never does."""
        return any(period and self.step % period == 0 for period in periods)

    def initialise(self) -> None:
        """Set every b_dec to the mean of the first activations, and every loss's normaliser to their variance."""
        with self.world.together():
            first, held_out = self.source.peek(), next(self.feed.held_out_batches())
            about = self.feed.about_held_out() if self.world.is_main else []
        if not self.world.any(len(next(iter(first.values()))) > 0) or not len(held_out.kept):
            raise ValueError(
                "--exclude_tokens and --exclude_positions must leave some tokens to train on and to hold out, got none "
                "of the first batches; exclude fewer"
            )
        count = self.source.own_of_first(FIRST_TOKENS)
        few = self._by_sae(self.world.exchange({hookpoint: acts[:count] for hookpoint, acts in first.items()}))
        first = self._by_sae(self.world.exchange(first))
        for name, learner in self.learners.items():
            learner.initialise(first[name], new=self.cfg.finetune is None, fit_on=few[name], add_up=self._add_up)
        constant = [name for name, learner in self.learners.items() if learner.variance == 0]
        if alike := list(dict.fromkeys(name for names in self.world.gather(constant) for name in names)):
            message = (
                f"activations at {', '.join(alike[:5])} must differ between tokens, but all of the first batches are "
                "the same: there is nothing to learn; leave such places out with --hookpoints or --layers"
            )
            raise self.world.on_all(ValueError(message))
        if too_short := short_run_note(self.shapes, self.total_steps * self.tokens_per_step):
            self._note(too_short)
        if self.device.type == "cpu" and self.cfg.recipe == "default" and (missing := native.advice()):
            self._note(missing)
        spared = self.cfg.recipe == "default"
        if found := massive_note(held_out.activations, held_out.tokens, held_out.kept, spared=spared):
            self._note(found)
        for sentence in about:
            self._note(sentence)

    def _add_up(self, sums: list[Tensor]) -> None:
        self.world.add_up(sums)()

    def train_step(self) -> bool:
        """One optimizer step of every autoencoder; False, and nothing done, if the data ended before."""
        waits: dict[str, Callable[[], None]] = {}
        complete = False
        for learner in self.learners.values():
            learner.begin_step(self.step, self.total_steps)
        while not complete:
            with self.world.together():
                batch = next(self.source, None)
            if batch is None:
                return False
            complete = self.source.at_end_of_step
            self._accumulate(batch, waits if complete else None)
        self._position = None
        if self.end_to_end is not None:
            self.end_to_end.count_step(self._add_up)
        for name, learner in self.learners.items():
            with self.stopwatches[name]:
                if name in waits:
                    waits[name]()
                learner.update(self.learning_rate(name))
        self.step += 1
        self._position = self.source.state_dict()
        return True

    def _accumulate(self, batch: Any, waits: dict[str, Callable[[], None]] | None) -> None:
        """Add a batch's gradients; the step's last gets `waits`, for the sums over processes that begin then."""
        if self.end_to_end is not None:
            with ExitStack() as stack:
                for watch in self.stopwatches.values():
                    stack.enter_context(watch)
                for part in batch.tensor_split(self.cfg.micro_acc_steps):
                    self.end_to_end.accumulate(part)
            if waits is not None:
                waits |= {name: self._begin_to_add_up(learner) for name, learner in self.learners.items()}
            return
        activations = self._by_sae(self.world.exchange(batch))
        for name, learner in self.learners.items():
            with self.stopwatches[name]:
                for part in activations[name].tensor_split(self.cfg.micro_acc_steps):
                    learner.accumulate(part)
            if waits is not None:  # the other processes' gradients come while the next learner computes
                waits[name] = self._begin_to_add_up(learner)

    def _begin_to_add_up(self, learner: SaeLearner) -> Callable[[], None]:
        """Start to add the step's sums over the processes that train the same; the result waits for it.

        Without such processes the gradients stay as they are, and never become whole matrices.
        """
        return self.world.add_up(learner.sums()) if self.world.has_replicas else lambda: None

    def learning_rate(self, name: str) -> float:
        """The learning rate of an autoencoder in the step that comes next."""
        warmup = warmup_steps(self.total_steps, self.cfg.lr_warmup_steps)
        return self._peak_lr(name) * schedule(self.step, self.total_steps, warmup)

    def _peak_lr(self, name: str) -> float:
        if (lr := self.plans[name].lr) is not None:
            return lr
        return peak_lr(self.shapes[name].num_latents, self.total_steps, self._firings(name), self.cfg.recipe)

    def _recipe(self, name: str) -> Recipe:
        recipe = Recipe.named(self.cfg.recipe, self.total_steps, self._firings(name))
        # The whole model sees what an autoencoder selects by itself; and one that is trained already has learned k.
        grows = self.cfg.loss_fn == "fvu" and self.cfg.finetune is None
        return recipe if grows else recipe._replace(k_growth=0.0)

    def _firings(self, name: str) -> float:
        shape = self.shapes[name]
        return firings(self.tokens_per_step, shape.cfg.k, shape.num_latents)

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
        for name, metrics in self._merged({name: _read(learner) for name, learner in self.learners.items()}).items():
            if isinstance(metrics, FloatingPointError):
                place = f"step {self.step}"
                if self.end_to_end is None:
                    place += f", before batch {self.feed.batch_index} of the data"
                raise self.world.on_all(FloatingPointError(f"{name}: {metrics} at {place}; try a lower --lr"))
            record |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        return record

    def evaluate(self) -> dict[str, ReconstructionMetrics]:
        """Reconstruction of the held-out tokens, by autoencoder; of several copies each process measures a share."""
        batches = (self._by_sae(batch.activations) for batch in self.feed.held_out_batches())
        with self.world.together():
            rules = {name: learner.rule for name, learner in self.learners.items()}
            found = evaluate_reconstruction(self.world.share(self.saes), batches, rules)
        return self._merged({name: self._of_all_parts(metrics) for name, metrics in found.items()})

    def _of_all_parts(self, metrics: ReconstructionMetrics) -> ReconstructionMetrics:
        shares = torch.tensor([metrics.l0, metrics.unused_fraction], dtype=torch.float64)
        l0, unused = self.world.latent_shards().sum_(shares).tolist()
        return metrics._replace(l0=l0, unused_fraction=unused / self.cfg.shard_latents)

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
                name: {"d_in": shape.d_in, "num_latents": shape.num_latents, "k": shape.cfg.k}
                for name, shape in self.shapes.items()
            },
            "processes": self.world.size,
            "batches_per_step": self.batches_at_once,
            "steps_per_batch": self.steps_per_batch,
            "total_steps": self.total_steps,
            "tokens_per_step": self.tokens_per_step,
            "data_seed": self.feed.data_seed,
            "held_out_sequences": self.feed.held_out,
            "held_out_by": self.feed.held_out_by,
            "num_sequences": self.feed.num_sequences,
            "ctx_len": self.feed.ctx_len,
            "read_with": self.feed.read_with,
            "shuffle_block_batches": self._batches_per_block(),
            "peak_lr": {name: self._peak_lr(name) for name in self.plans},
            "fingerprints": self.fingerprints,
        }

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What tells model and data from others. Raises ValueError if not all processes have the same."""
        with self.world.together():
            own = self.feed.fingerprints()
        for rank, other in enumerate(self.world.gather(own)):
            if different := [name for name in own if own[name] != other[name]]:
                raise self.world.on_all(
                    ValueError(
                        f"all processes must read the same model and data, but {' and '.join(different)} of rank "
                        f"{self.world.rank} and rank {rank} differ; copy the same files to every machine"
                    )
                )
        return own

    def _merged(self, own: Mapping[str, T]) -> dict[str, T]:
        """What each process found of the autoencoders that it holds, by name, in the order of the plans."""
        found: dict[str, T] = {}
        for part in reversed(self.world.gather(dict(own))):
            found |= part
        return {name: found[name] for name in self.plans}

    def _note(self, message: str) -> None:
        if self.world.is_main:
            note(message)

    def _open_sinks(self, stack: ExitStack) -> list[Sink]:
        if not self.world.is_main:
            return []
        sinks: list[Sink] = [JsonLines(self.folder.metrics, keep_until_step=self.step)]
        if self.cfg.log_to_wandb:
            if reason := why_no_wandb():
                note(f"not logging to Weights & Biases: {reason}; metrics go to {self.folder.metrics}")
            else:
                path, described = self.folder.path, self.describe()
                make = partial(WandbSink, name=path.name, config=described, folder=path)
                sinks.append(Detached(make, what="Weights & Biases", instead=self.folder.metrics))
        for sink in sinks:
            stack.callback(sink.close)
        return sinks

    # State

    def state(self, *, measure: bool = False) -> checkpoint.Checkpoint:
        """The state between two steps, on the main process; with `measure` the held-out FVU is part of it."""
        weights = self._whole({name: dict(sae.state_dict()) for name, sae in self.saes.items()})
        states = self._whole({name: learner.state_dict() for name, learner in self.learners.items()})
        saes = {name: Sae.of_tensors(self.shapes[name].cfg, tensors) for name, tensors in weights.items()}
        trainer = {"step": self.step, "source": self._position}
        if self.end_to_end is not None:
            trainer["end_to_end"] = self.end_to_end.state_dict()
        if measure:
            measured = {name: metrics.fvu for name, metrics in self.evaluate().items()}
            trainer["held_out_fvu"] = {name: fvu for name, fvu in measured.items() if math.isfinite(fvu)}
        return checkpoint.Checkpoint(saes, states, trainer)

    def _whole(self, held: Mapping[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """On the main process the tensors of all autoencoders, brought there if need be; elsewhere nothing."""
        whole = {name: self.world.whole(name, held.get(name, {}), is_split=is_per_latent) for name in self.plans}
        return whole if self.world.is_main else {}

    def save(self, *, measure: bool = False) -> Path:
        """Write a checkpoint and wait until it is on disk; returns its folder."""
        return self.world.from_main(partial(self.saver.save, self.state(measure=measure)), slow=True)

    def _start_to_save(self) -> None:
        self.world.from_main(partial(self.saver.start, self.state(measure=self.cfg.save_best)), slow=True)

    def _save_what_is_left(self) -> str:
        """Save after an error, if that is still possible; what to tell the user."""
        with suppress(OSError, FloatingPointError):
            self.saver.wait()
        if self._position is not None and self.world.is_whole:
            try:
                return f"stopped at step {self.step}; the state before is saved in {self.save()}"
            except (OSError, FloatingPointError):
                pass  # such as the full disk that brought us here
        return f"stopped at step {self.step}, not saved; the last checkpoint is {checkpoint.latest(self.folder.path)}"

    def resume(self) -> None:
        """Continue from the newest undamaged checkpoint of this run; from the beginning if there is none.

        Raises ValueError if the model or the data have been replaced since.
        """
        for sentence in check_sources(self._before, self.fingerprints, self.cfg):
            self._note(sentence)
        folder, complaints = self.world.from_main(self._newest_checkpoint, slow=True)
        for complaint in complaints:
            self._note(f"passed over: {complaint}")
        if folder is None:
            self._note(f"no checkpoint in {self.folder.path} yet: starting at the beginning")
        else:
            with self.world.together():
                self.load(folder)
            self._note(f"continuing from {folder}")

    def _newest_checkpoint(self) -> tuple[Path | None, list[str]]:
        folder, complaints = checkpoint.newest_undamaged(self.folder.path)
        checkpoint.set_damaged_aside(self.folder.path, folder)
        return folder, complaints

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint of a run with the same configuration. Raises ValueError if it is damaged."""
        saved = checkpoint.load(folder, self._like())  # every process reads what it holds
        for name, learner in self.learners.items():
            self.saes[name].load_state_dict(self._own_part(saved.saes[name].state_dict()))
            learner.load_state_dict(self._own_part(saved.states[name]))
        with checkpoint.understood(folder):
            self.source.load_state_dict(saved.trainer["source"])
            if self.end_to_end is not None:
                self.end_to_end.load_state_dict(saved.trainer["end_to_end"])
            self._position = self.source.state_dict()
            self.step = whole(saved.trainer, "step", self.total_steps)

    def _like(self) -> checkpoint.Checkpoint:
        """The shapes and types of what this process holds, as it is when it is whole."""
        shapes = partial(self.world.shapes_of_whole, is_split=is_per_latent)
        saes = {n: Sae.of_tensors(self.shapes[n].cfg, shapes(dict(s.state_dict()))) for n, s in self.saes.items()}
        states = {name: shapes(learner.state_dict()) for name, learner in self.learners.items()}
        return checkpoint.Checkpoint(saes, states, {})

    # Set-up

    def _make_saes(self) -> dict[str, Sae]:
        if self.cfg.finetune is not None:
            hookpoints = dict.fromkeys(plan.hookpoint for plan in self._held().values())
            found = Sae.load_many(self.cfg.finetune, hookpoints, self.device) if hookpoints else {}
            return {name: self._continued(plan, found[plan.hookpoint]) for name, plan in self._held().items()}
        return {name: self._new_sae(plan) for name, plan in self._held().items()}

    def _place(self) -> Placement:
        """Which process trains what: by the cost of the product with the encoder."""
        widths = {name: self.feed.widths[plan.hookpoint] for name, plan in self.plans.items()}
        return place(
            {name: widths[name] * plan.cfg.latents_for(widths[name]) for name, plan in self.plans.items()},
            {name: plan.hookpoint for name, plan in self.plans.items()},
            size=self.world.size,
            shards=self.cfg.shard_latents,
            distribute=self.cfg.distribute_layers,
        )

    def _held(self) -> dict[str, SaePlan]:
        holds = self.world.placement.holds
        return {name: plan for name, plan in self.plans.items() if holds(self.world.rank, name)}

    def _new_sae(self, plan: SaePlan) -> Sae:
        # A seed of its own, so that an autoencoder does not depend on which others are trained beside it.
        generator = torch.Generator().manual_seed(plan.seed + zlib.crc32(plan.hookpoint.encode()))
        return self._sae(self.feed.widths[plan.hookpoint], plan.cfg, device=self.device, generator=generator)

    def _sae(self, d_in: int, cfg: SaeConfig, **options: Any) -> Sae:
        """A new autoencoder, or this process's part of one."""
        place = self.world.placement
        if place.shards == 1:
            return Sae(d_in, cfg, **options)
        part = place.part(self.world.rank)
        return SaePart(d_in, cfg, shards=self.world.latent_shards(), part=part, parts=place.shards, **options)

    def _copy(self, whole: Sae) -> Sae:
        tensors = {key: t.clone() for key, t in self._own_part(whole.state_dict()).items()}
        if self.world.placement.shards == 1:
            return Sae.of_tensors(whole.cfg, tensors)
        sae = self._sae(whole.d_in, replace(whole.cfg, num_latents=whole.num_latents), device=self.device)
        sae.load_state_dict(tensors)
        return sae

    def _own_part(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.world.part(tensors, is_split=is_per_latent)

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
        start = sae.to_continue()
        if start.cfg != sae.cfg:
            self._note(f"{name}: the rows of W_dec in {source} differ in length, so that they are trained freely")
        return self._copy(start)

    def _by_sae(self, activations: Activations) -> Activations:
        """What each autoencoder reads, by its name."""
        return {name: activations[self.plans[name].hookpoint] for name in self.saes}

    def _make_source(self) -> tuple[Any, EndToEnd | None]:
        """Activations, mixed over many sequences; or the sequences themselves for a loss of the whole model."""
        cfg = self.cfg
        if cfg.loss_fn == "fvu":
            buffer = ShuffleBuffer(
                self.feed.source,
                self._batches_per_block(),
                seed=cfg.data_seed,
                step=self.batches_at_once,
                split=self.steps_per_batch,
                rank=self.world.rank,
                ranks=self.world.size,
            )
            return buffer, None
        live = self._live
        end_to_end = EndToEnd(
            live.model,
            self._by_configuration(self.learners),
            lambda tokens: counted(tokens, cfg.exclude_tokens, cfg.exclude_positions),
            loss_fn=cfg.loss_fn,
            tokens_per_step=self.tokens_per_step,
            ctx_len=live.ctx_len,
        )
        source = SequenceSource(
            live.batches,
            live.source.read,
            step=self.batches_at_once,
            rank=self.world.rank,
            ranks=self.world.size,
        )
        return source, end_to_end

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

    def _steps_per_batch(self, batches: int, tokens: int, chosen: int | None) -> int:
        """Into how many steps those tokens are divided that come at once, so many times. Raises ValueError."""
        if chosen is None:
            divides = self.cfg.recipe == "default" and self.cfg.loss_fn == "fvu" and self._has_whole_blocks()
            return steps_per_batch(batches, tokens) if divides else 1
        if tokens % chosen:
            raise ValueError(
                "steps_per_batch must divide batch_size × ctx_len × grad_acc_steps × processes = "
                f"{tokens} tokens, got {chosen}; choose a divisor"
            )
        if chosen > 1 and not self._has_whole_blocks():
            raise ValueError(
                f"steps_per_batch must be 1 where {tokens} activations are too large to be mixed in memory, got "
                f"{chosen}; leave it out, and lower --batch_size or --grad_acc_steps for more steps"
            )
        return chosen

    def _has_whole_blocks(self) -> bool:
        """Whether all tokens are mixed that make `steps_per_batch` steps."""
        return self._batches_per_block() % self.batches_at_once == 0

    def _batches_per_block(self) -> int:
        d_total = sum(self.feed.widths.values())  # the order of tokens must not depend on what is trained on them
        bytes_per_batch = self.cfg.batch_size * self.feed.ctx_len * d_total * self.feed.dtype.itemsize
        return batches_per_block(self.batches_at_once, bytes_per_batch)


def report_dead_after(cfg: TrainConfig, total_tokens: int) -> int:
    """Tokens without firing after which a latent is reported as dead: chosen, or derived from the run's length."""
    if cfg.dead_feature_threshold is not None:
        return cfg.dead_feature_threshold
    longest = PAPERS_DEAD_THRESHOLD
    return longest if cfg.recipe == "gao2024" else min(longest, max(1, total_tokens // 20))


def short_run_note(shapes: Mapping[str, "SaeShape"], tokens: int) -> str | None:
    """A sentence for a run in which not every latent can fire k times, with how many can; None for a longer one."""
    largest = max((shape.num_latents for shape in shapes.values()), default=0)
    if tokens >= largest:
        return None
    return (
        f"the run is short for {largest:,} latents: in {tokens:,} tokens at most {tokens:,} of them can fire k times; "
        f"give more text, or --num_latents {tokens} or fewer"
    )


class SaeShape(NamedTuple):
    """An autoencoder as it is when it is whole."""

    cfg: SaeConfig
    d_in: int
    num_latents: int

    @classmethod
    def of(cls, sae: Sae, parts: int) -> "SaeShape":
        """Of one of so many equal parts."""
        return cls(sae.cfg, sae.d_in, sae.num_latents * parts)


def _read(learner: SaeLearner) -> dict[str, float] | FloatingPointError:
    try:
        metrics = learner.read_metrics()._asdict()
    except FloatingPointError as error:
        return error
    recall = learner.read_recall()
    return metrics if recall is None else metrics | {"recall": recall}


def check_processes(cfg: TrainConfig, processes: int) -> None:
    """Raise ValueError for what cannot be done on so many processes."""
    if processes == 1 or not (cfg.distribute_layers or cfg.shard_latents > 1):
        return
    for name, default in (("loss_fn", "fvu"), ("eval_every", 0)):
        if getattr(cfg, name) != default:
            raise ValueError(
                f"{name} must be {default} where no process holds all autoencoders, got {getattr(cfg, name)}; "
                f"leave out --{name}, or --distribute_layers and --shard_latents"
            )
