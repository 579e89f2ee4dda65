"""The trainer: composes the language model, the data, the autoencoders and the logs, and reads top to bottom."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from sae.activations.opening import open_store
from sae.activations.reading import left_out_note
from sae.activations.source import Activations
from sae.activations.store import model_name
from sae.config import TrainConfig
from sae.data.position import count_in
from sae.dictionary.cross_layer import Together
from sae.dictionary.wiring import Pair, pairs_of
from sae.evaluation.reconstruction import ReconstructionMetrics, evaluate_reconstruction
from sae.ops import native
from sae.ops.defaults import own_defaults
from sae.report.training import report
from sae.runs import checkpoint
from sae.runs.folder import RunFolder, check_sources
from sae.runs.log import Record, Sink, note
from sae.training import first_look, held_out, persistence, progress
from sae.training.building import live_store, make_learners, make_saes, make_source
from sae.training.held_out import HeldOut
from sae.training.joint import groups
from sae.training.launch import Launch
from sae.training.learner import FIRST_TOKENS, SaeLearner
from sae.training.memory import free_memory, return_freed_memory
from sae.training.memory_plan import check_fits, check_sweep_fits
from sae.training.persistence import Persistence
from sae.training.progress import RunLog, Speed
from sae.training.run_plan import LearnerPlan, RunPlan, SaePlan, SaeShape, Stage, short_run_note

T = TypeVar("T")

RECALL_EVERY = 16
"""Steps from one reading of the recall of 8-bit candidates to the next, at least: it takes a twentieth of a step."""


class SaeTrainer:
    """Trains one autoencoder per hookpoint of `model` on `dataset`, all at once.

    The autoencoders are in `saes`, by name; `plans` says which hookpoint each reads.
    """

    @own_defaults()
    def __init__(
        self, cfg: TrainConfig, dataset: Any, model: nn.Module | None = None, *, launch: Launch[Any] | None = None
    ) -> None:
        """Plan the run, and make its autoencoders.

        Args:
            cfg: Options of the run.
            dataset: Tokenised data: rows of `input_ids` of one length, as `sae.data.chunk_and_tokenize` returns them.
                Also a tensor (sequences, ctx_len), or a stream of such rows. Or an `sae.data.ActivationCache`: training
                cannot tell the difference.
            model: Any model of transformers; None with a cache. It is not changed, unless `compile_lm` asks to compile
                its blocks in place.
            launch: Start of the run, if that is decided already.

        Raises:
            ValueError: Names the option, for a choice that does not fit the model or the data.
        """
        self.launch = launch = launch or Launch.of(cfg, model_name(dataset, model))
        self.cfg, self.world, self.stop = launch.cfg, launch.world, launch.stop
        cfg, world = launch.cfg, launch.world
        self.store = open_store(
            cfg,
            dataset,
            model,
            launch.batches_at_once,
            whole_documents=launch.whole_documents,
            wait=launch.stop.wait,
        )
        self.device = self.store.device
        self.held_out = HeldOut(self.store)

        self.plan = plan = RunPlan.of(
            cfg,
            self.store,
            launch.combinations,
            processes=world.size,
            batches_at_once=launch.batches_at_once,
            before=launch.before,
        )
        world.placement = plan.placement
        self._check_memory()
        self.saes = make_saes(plan, world, self.device, self._note, launch.typed, begun=launch.begun)
        """Autoencoders that this process holds, by name: all, unless they are distributed."""
        shapes = self._merged({name: SaeShape.of(sae, cfg.shard_latents) for name, sae in self.saes.items()})
        self.step = 0
        self.learner_plans = {
            stage: {name: plan.learner(name, shape, stage) for name, shape in shapes.items()} for stage in plan.stages
        }
        """Plans of all autoencoders, whoever holds them, by stage of the run."""
        self.learners = make_learners(plan, self.saes, self.learner_plans[self.stage], world, self.device)
        self.groups = groups(self.learners, plan.together(), world.sum_)
        """Learners that write the same places together, and each of the others alone."""
        self.source, self.end_to_end = make_source(plan, self.store, self.learners, world)
        self._position: dict[str, Any] | None = self.source.state_dict()
        """Position of the next step's data; None in the middle of an update, when there is no state to save."""
        self.stopped = False
        """Whether all processes have agreed to follow a request to stop."""
        self.speed = Speed(self.saes, self.device)
        self.folder = self._sized_folder()
        self.persistence = Persistence(self.folder, world, shapes, self.saes, self.learners)

    def _check_memory(self) -> None:
        """Raises ValueError if what this process is to hold does not fit into the memory that is free."""
        plan, recipe = self.plan, self.cfg.recipe
        held, free = plan.held_by(self.world.rank), free_memory(self.device)
        if plan.is_sweep:
            whole = self.device.type != "cpu" or self.world.has_replicas or self.cfg.loss_fn != "fvu"
            self._note(check_sweep_fits(held, plan.widths, recipe, free, whole_gradients=whole))
        elif self.cfg.finetune is None:  # whose sizes come with it
            check_fits(held, plan.widths, recipe, free, parts=self.cfg.shard_latents)

    def _sized_folder(self) -> RunFolder:
        """The run's folder, which knows how many checkpoints the disk has room for."""
        copies = len(self.world.placement.replicas(self.world.rank))  # only one of them is written
        sized = partial(
            self.launch.folder.sized,
            self.cfg,
            model_name=self.launch.model_name,
            checkpoint_bytes=sum(self.world.gather(checkpoint.size_on_disk(self.saes))) // copies,
            total_steps=self.plan.steps.total,
        )
        return self.world.from_main(sized)

    @own_defaults()
    def fit(self) -> Path:
        """Train to the end of the data or of `max_tokens`.

        Ctrl-C and SIGTERM save and end early; the second ends at once. After any error the last good state is saved
        first.

        Returns:
            Folder of the last checkpoint.

        Raises:
            FloatingPointError: When activations or a loss are not finite; names the hookpoint, the step and the place.
            KeyboardInterrupt: When a second signal came, or the first before the run began or after it was saved.
        """
        self.fingerprints  # noqa: B018 - processes that do not read the same end here
        with ExitStack() as lock:
            started = time.perf_counter()
            if self.cfg.resume:
                self._lock(lock)
                self.resume()
            if self.step == 0:
                self.initialise()  # the first look at the data: what is wrong with it shows before anything is written
                return_freed_memory()
            self.speed.look(time.perf_counter() - started)
            if not self.cfg.resume:
                self._lock(lock)
            with ExitStack() as after:  # sinks finish last: a service may take its time, when all is saved and told
                return self._fit(after)

    def _lock(self, stack: ExitStack) -> None:
        self.world.from_main(lambda: stack.enter_context(self.folder.alone(note)))

    def _fit(self, after: ExitStack) -> Path:
        self._claim()
        with self.stop:
            try:
                with self._open_log(after) as log:
                    self._train(log)
                forced = self.stopped and self.step < self.total_steps  # every second counts: it may be killed
                calibrated = not forced and self.calibrate()
                saved = self.save(measure=self.cfg.save_best and not forced, anew=calibrated)
            except Exception as error:
                error.add_note(self._save_what_is_left())
                raise
        if self.stopped or self._agree_to_stop():
            self._note(f"stopped at step {self.step} of {self.total_steps}; saved in {saved}")
        else:
            self._report(saved)
        return saved

    def _claim(self) -> None:
        self.world.from_main(partial(self.folder.claim, self.cfg, self.describe(), self.compiler))
        if rates := progress.derived_rates(self.plan, self.learner_plans):
            self._note(rates)
        if self.folder.keep_last != self.cfg.keep_last:
            self._note(
                f"keeping the newest {self.folder.keep_last} checkpoints: all would take over half of the free disk"
            )

    def _open_log(self, after: ExitStack) -> RunLog:
        sinks: list[Sink] = []
        is_main = self.world.is_main
        if is_main:
            config, wandb = self.describe(), self.cfg.log_to_wandb
            sinks = progress.open_sinks(self.folder, config, after, step=self.step, wandb=wandb)
        return RunLog(self.plan, sinks, step=self.step, hidden=not is_main)

    def _train(self, log: RunLog) -> None:
        self.speed.start(self.step)
        while not self._agree_to_stop() and self.step < self.total_steps and self.train_step():
            log.advance()
            if self._every(self.cfg.log_every, self.cfg.eval_every) or self.step == self.total_steps:
                self._log(log)
            if self.step % self.cfg.save_every == 0 and self.step < self.total_steps:
                self.persistence.start_to_save(self.state(measure=self.cfg.save_best))
            with self.world.together():
                self.persistence.check()
        if self.step < self.total_steps and not self.stopped:
            self._end_of_data(log)

    def _agree_to_stop(self) -> bool:
        self.stopped = self.world.any(bool(self.stop))
        return self.stopped

    def _every(self, *periods: int) -> bool:
        """Whether one of these periods, in steps, ends here; 0 never does."""
        return any(period and self.step % period == 0 for period in periods)

    def _log(self, log: RunLog) -> None:
        tokens, seconds = self.speed.steps(self.step) * self.tokens_per_step, self.speed.seconds()
        own = progress.speeds(tokens, self._seconds())
        record = self.metrics(tokens_per_second=tokens / seconds)
        record |= {f"{name}/tokens_per_second": speed for name, speed in own.items() if tokens}
        if self._every(self.cfg.eval_every):
            with self.world.together():
                record |= self.evaluate_grafted() if self.world.is_main else {}
        log.write(record)

    def calibrate(self) -> bool:
        """Fit the thresholds of batchtopk to the ordinary held-out tokens: their L0 is then k, or what was asked for.

        Whether any has changed.
        """
        found = {name: each.calibration() for name, each in self.learners.items() if each.sae.threshold is not None}
        if found:
            with self.world.together():
                for batch in self.held_out.batches(keep=True):
                    pairs = self._by_sae(batch.activations)
                    for name, calibration in found.items():
                        calibration.add(pairs[name])
        changed = [calibration.end() for calibration in found.values()]
        return self.world.any(any(changed))

    def _end_of_data(self, log: RunLog) -> None:
        """A stream has ended before the run. Raises ValueError if it did not hold one step."""
        if self.step == 0:
            raise ValueError(
                f"the data must hold one step of {self.tokens_per_step} tokens, but the stream ended before; "
                "give more text, or lower --batch_size, --ctx_len or --grad_acc_steps"
            )
        self._note(
            f"the data ended at step {self.step} of {self.total_steps}, before the learning rate had decayed; "
            f"next time give --max_tokens {self.step * self.tokens_per_step}"
        )
        if self.world.any(not all(learner.metrics_are_read() for learner in self.learners.values())):
            self._log(log)

    def initialise(self) -> None:
        """Set every b_dec to the mean of the first activations, and every loss's normaliser to their variance."""
        with self.world.together():
            first, held_out_batch = self.source.peek(), self.store.first_held_out()
            if self.end_to_end is not None:
                self.end_to_end.rehearse(self.source.first.tensor_split(self.cfg.micro_acc_steps)[0])
            about = self._about_data() if self.world.is_main else []
        first_look.check_some_are_left(first, held_out_batch, self.world)
        count = self.source.own_of_first(FIRST_TOKENS)
        few = self._by_sae(self.world.exchange({hookpoint: acts[:count] for hookpoint, acts in first.items()}))
        first = self._by_sae(self.world.exchange(first))
        new = self.cfg.finetune is None
        for name, learner in self.learners.items():
            fit_on, fit_to = few[name]
            learner.initialise(*first[name], new=new, fit_on=fit_on, fit_to=fit_to, add_up=self._add_up)
        first_look.check_they_differ(self.learners, self.world)
        too_short = short_run_note((plan.shape for plan in self._current_plans.values()), self.plan.total_tokens)
        capped = self.cfg.recipe == "default"
        slow = native.advice() if capped and self.device.type == "cpu" else None
        for sentence in first_look.notes(held_out_batch, too_short, slow, about, spared=capped):
            self._note(sentence)

    def _about_data(self) -> list[str]:
        """Sentences on what is held out, and on what is left out."""
        left_out = left_out_note(self.cfg, self.store, self.plan.num_batches)
        return self.store.about_held_out() + ([left_out] if left_out else [])

    def train_step(self) -> bool:
        """One optimizer step of every autoencoder; False, and nothing done, if the data ended before."""
        complete, stage = False, self.stage
        if 0 < self.step == stage.start:
            self._follow_recipes(anew=True)
        for learner in self.learners.values():
            learner.begin_step(self.step - stage.start, stage.total)
        while not complete:
            with self.world.together():
                batch = next(self.source, None)
            if batch is None:
                return False
            complete = self.source.at_end_of_step
            waits = self._accumulate(batch, is_last=complete)
        self._position = None
        if self.end_to_end is not None:
            self.end_to_end.count_step(self._add_up)
        for name, learner in self.learners.items():
            with self.speed.timing([name]):
                waits[name]()  # for the gradients of other processes
                learner.update(self.learning_rate(name))
        self.step += 1
        self._position = self.source.state_dict()
        return True

    def _accumulate(self, batch: Any, *, is_last: bool) -> dict[str, Callable[[], None]]:
        """Add a batch's gradients. After the step's last batch {name: wait for the sums over processes}."""
        if self.end_to_end is not None and self.stage.loss_fn == "fvu":
            batch = self.source.activations(batch)
        elif self.end_to_end is not None:
            with self.speed.timing(self.learners):
                for part in batch.tensor_split(self.cfg.micro_acc_steps):
                    self.end_to_end.accumulate(part)
            return self._begin_to_add_up(self.learners) if is_last else {}
        pairs = self._by_sae(self.world.exchange(batch))
        waits: dict[str, Callable[[], None]] = {}
        for group in self.groups:
            with self.speed.timing(group.learners):
                parts = {name: _split(pairs[name], self.cfg.micro_acc_steps) for name in group.learners}
                for part in range(self.cfg.micro_acc_steps):
                    group.accumulate({name: parts[name][part] for name in group.learners})
                if is_last:  # the other processes' gradients come while the next group computes
                    waits |= self._begin_to_add_up(group.learners)
        return waits

    def _by_sae(self, activations: Activations) -> dict[str, Pair]:
        """What each dictionary reads and is to write, by its name."""
        return pairs_of({name: self.plans[name].wiring for name in self.saes}, activations)

    def _begin_to_add_up(self, learners: Mapping[str, SaeLearner]) -> dict[str, Callable[[], None]]:
        """Start to add the step's sums over the processes that train the same; what is returned waits for them.

        Without such processes the gradients stay as they are, and never become whole matrices.
        """
        if not self.world.has_replicas:
            return dict.fromkeys(learners, lambda: None)
        return {name: self.world.add_up(learner.sums()) for name, learner in learners.items()}

    def _add_up(self, sums: list[Tensor]) -> None:
        self.world.add_up(sums)()

    def learning_rate(self, name: str) -> float:
        """The learning rate of an autoencoder in the step that comes next."""
        return self._current_plans[name].peak_lr * self.plan.schedule(self.step)

    def metrics(self, *, tokens_per_second: float) -> Record:
        """What happened since the last record, by autoencoder. Waits for the device.

        Raises FloatingPointError, naming the autoencoder and the step, if a loss was not finite.
        """
        tokens = self.step * self.tokens_per_step
        record: Record = {"step": self.step, "tokens": tokens, "tokens_per_second": tokens_per_second}
        if self.end_to_end is not None and (loss := self.end_to_end.read_loss()) is not None:
            record["loss"] = loss
        recall = self._every(RECALL_EVERY) or self.cfg.log_every >= RECALL_EVERY or self.step == self.total_steps
        found = {name: progress.read_metrics(learner, recall=recall) for name, learner in self.learners.items()}
        for name, metrics in self._merged(found).items():
            if isinstance(metrics, FloatingPointError):
                where = f"step {self.step}"
                if self.end_to_end is None:
                    where += f", before batch {self.store.batch_index} of the data"
                raise self.world.on_all(FloatingPointError(f"{name}: {metrics} at {where}; try a lower --lr"))
            record |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        return record

    def held_out_quality(self) -> dict[str, ReconstructionMetrics]:
        """Reconstruction of the held-out tokens, by autoencoder; with copies, each process measures a share."""
        batches = (self._by_sae(batch.activations) for batch in self.held_out.batches())
        with self.world.together():
            rules = {name: learner.rule for name, learner in self.learners.items()}
            found = evaluate_reconstruction(
                self.world.share(self.saes),
                batches,
                rules,
                together=[Together.of(self.saes, layout, self.world.sum_) for layout in self.plan.together()],
            )
        shards = self.world.latent_shards()
        return self._merged({name: held_out.of_all_parts(one, shards) for name, one in found.items()})

    def evaluate_grafted(self) -> Record:
        """What `sae eval` measures, on the first held-out tokens: `<name>/eval_<metric>`, and `all/…` at once."""
        return held_out.evaluate_grafted(self.cfg, live_store(self.store), self.plan.grouped(self.saes))

    def _report(self, saved: Path) -> None:
        results, tokens = self.held_out_quality(), self.speed.steps(self.step) * self.tokens_per_step
        speeds = progress.speeds(tokens, self._seconds())
        if self.world.is_main:
            report(self.folder.path, saved, results, self.step * self.tokens_per_step, speeds)

    def _seconds(self) -> dict[str, float]:
        """Seconds of each autoencoder's own training by this process. Waits for the device."""
        return self._merged({name: watch.read() for name, watch in self.speed.stopwatches.items()})

    def describe(self) -> dict[str, Any]:
        """What config.json says beside the configuration: what was derived from model and data."""
        return progress.derived(
            self.plan,
            self.store,
            self.learner_plans[self.plan.stages[-1]],
            processes=self.world.size,
            fingerprints=self.fingerprints,
        )

    def state(self, *, measure: bool = False) -> checkpoint.Checkpoint:
        """The state between two steps, on the main process; with `measure` the held-out FVU is part of it."""
        own: dict[str, Any] = {"step": self.step, "source": self._position}
        if self.end_to_end is not None:
            own["end_to_end"] = self.end_to_end.state_dict()
        if measure:
            measured = {name: metrics.fvu for name, metrics in self.held_out_quality().items()}
            own["held_out_fvu"] = {name: fvu for name, fvu in measured.items() if math.isfinite(fvu)}
        return self.persistence.state(own)

    def save(self, *, measure: bool = False, anew: bool = False) -> Path:
        """Write a checkpoint and wait until it is on disk.

        Args:
            measure: Whether the held-out FVU is part of it.
            anew: Whether to replace a checkpoint of this step.

        Returns:
            Folder of the checkpoint.
        """
        return self.persistence.save(self.state(measure=measure), anew=anew)

    def _save_what_is_left(self) -> str:
        """Save after an error, if that is still possible; what to tell the user."""
        self.persistence.settle()
        if self._position is not None and self.world.is_whole:
            try:
                return f"stopped at step {self.step}; the state before is saved in {self.save()}"
            except (OSError, FloatingPointError):
                pass  # such as the full disk that brought us here
        return f"stopped at step {self.step}, not saved; the last checkpoint is {self.persistence.latest()}"

    def what_resumes(self) -> str:
        """What `--resume` would find in the folder of the run, as a sentence."""
        last = self.persistence.latest()
        if last is None:
            return f"no checkpoint is in {self.folder.path} yet; --resume starts at the beginning"
        return f"--resume continues from {last}"

    def resume(self) -> None:
        """Continue from the newest undamaged checkpoint of this run; from the beginning if there is none.

        Raises:
            ValueError: If the model or the data have been replaced since.
        """
        replaced = check_sources(self.launch.before, self.fingerprints, self.cfg)
        for sentence in [*replaced, *self.world.from_main(partial(self.folder.other_versions, self.compiler))]:
            self._note(sentence)
        folder, complaints = self.persistence.newest_undamaged(self.launch.begun)
        for complaint in complaints:
            self._note(f"passed over: {complaint}")
        if folder is None:
            self._note(f"no checkpoint in {self.folder.path} yet: starting at the beginning")
        else:
            with self.world.together():
                self.load(folder)
            self._note(f"continuing from {folder}")

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint of a run with the same configuration. Raises ValueError if it is damaged."""
        own = self.persistence.load(folder)
        with checkpoint.understood(folder):
            self.source.load_state_dict(own["source"])
            if self.end_to_end is not None:
                self.end_to_end.load_state_dict(own["end_to_end"])
            self._position = self.source.state_dict()
            self.step = count_in(own, "step", self.total_steps)
        if self.stage.start:
            self._follow_recipes(anew=False)

    @property
    def compiler(self) -> str:
        """What has compiled the passes that train, or "none"; empty on a GPU, which has others."""
        if self.device.type != "cpu":
            return ""
        return "none" if native.library() is None else native.version() or "unnamed"

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of model and data. Raises ValueError if not all processes have the same."""
        return persistence.fingerprints(self.store, self.world)

    @property
    def plans(self) -> dict[str, SaePlan]:
        """What each autoencoder of the run reads, its shape and its seed, by name."""
        return self.plan.saes

    @property
    def stage(self) -> Stage:
        """The stage of the step that comes next."""
        return self.plan.stage(self.step)

    @property
    def _current_plans(self) -> dict[str, LearnerPlan]:
        return self.learner_plans[self.stage]

    def _follow_recipes(self, *, anew: bool) -> None:
        """Let every learner train as its stage says, `anew` or with the state that its optimizer has."""
        for name, learner in self.learners.items():
            learner.follow(self._current_plans[name].recipe, anew=anew)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.plan.steps.total

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step, the excluded ones included."""
        return self.plan.steps.tokens

    @property
    def steps_per_batch(self) -> int:
        """Steps into which the tokens that are read at once are divided."""
        return self.plan.steps.per_batch

    def _merged(self, own: Mapping[str, T]) -> dict[str, T]:
        return self.world.merged(own, self.plans)

    def _note(self, message: str) -> None:
        if self.world.is_main:
            note(message)


def _split(pair: Pair, parts: int) -> list[Pair]:
    """A pair in so many parts of its tokens."""
    ys = [None] * parts if pair.y is None else pair.y.tensor_split(parts)
    return [Pair(x, y) for x, y in zip(pair.x.tensor_split(parts), ys, strict=True)]
