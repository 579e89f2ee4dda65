"""What a run decides, as plain values, computed once: its steps, its autoencoders, who trains them, and how.

With one configuration an autoencoder is trained for each hookpoint, and has its name. With several, each is a
combination with a label. It trains an autoencoder named label/hookpoint at each hookpoint, all on the same activations.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from itertools import product
from typing import Any, NamedTuple, TypeVar

from sae import lm
from sae.activations.live import LiveStore
from sae.activations.reading import count_steps
from sae.activations.shuffle import batches_of_first_block, batches_per_block
from sae.activations.store import ActivationStore
from sae.config import SaeConfig, TrainConfig, several
from sae.dictionary.autoencoder import Sae
from sae.dictionary.spec import Spec
from sae.dictionary.wiring import ARROW, CROSSCODER, Wiring
from sae.parallel.placement import Placement, placement_of
from sae.training.recipe import (
    PEAK,
    RECONSTRUCT_FIRST,
    Recipe,
    firings,
    further_peak,
    peak_lr,
    schedule,
    steps_per_batch,
    warmup_steps,
)

T = TypeVar("T")

PAPERS_DEAD_THRESHOLD = 10_000_000
"""Tokens without firing after which AuxK takes a latent for dead: Gao et al. 2024, arXiv:2406.04093, app. A.2."""
SHORT = {"expansion_factor": "x", "num_latents": "n", "selection": ""}
"""Short names of options in labels."""


class Steps(NamedTuple):
    """How the data are divided into optimizer steps."""

    batches_at_once: int
    """Forward passes, over all processes, whose tokens make `per_batch` steps."""
    batches_per_block: int
    """Batches whose tokens are mixed with each other."""
    batches_of_first_block: int
    """Batches of the first block; each is then twice as large as the one before, up to `batches_per_block`."""
    per_batch: int
    """Equal steps of `batches_at_once` batches."""
    tokens: int
    """Tokens of one step, the excluded ones included."""
    total: int
    """Steps of the run."""


class SaeShape(NamedTuple):
    """The shape of a whole autoencoder."""

    cfg: SaeConfig
    d_in: int
    num_latents: int
    spec: Spec | None = None
    """Record of the dictionary; its number of latents may be a part's."""

    @classmethod
    def of(cls, sae: Sae, parts: int) -> "SaeShape":
        """The whole shape, from one of `parts` equal parts."""
        return cls(sae.cfg, sae.d_in, sae.num_latents * parts, sae.spec)


class LearnerPlan(NamedTuple):
    """Settings of one autoencoder's training that are the same in all steps of a stage."""

    shape: SaeShape
    recipe: Recipe
    peak_lr: float


class Stage(NamedTuple):
    """Steps with one loss and a schedule of their own: all of a run, or its first or last part."""

    start: int
    """First step, from 0."""
    stop: int
    """The step after the last."""
    loss_fn: str
    """Loss that they minimise."""
    warmup_steps: int
    """Steps of linear warm-up, the first of them."""

    @property
    def total(self) -> int:
        """The number of its steps."""
        return self.stop - self.start


class Combination(NamedTuple):
    """Settings in which autoencoders at the same hookpoint can differ."""

    cfg: SaeConfig
    lr: float | None
    seed: int


class SaePlan(NamedTuple):
    """One autoencoder to train: what it reads, its shape, and what it does not share with the others."""

    hookpoint: str
    """Hookpoint that it writes, and that an autoencoder also reads."""
    cfg: SaeConfig
    lr: float | None
    """Peak learning rate. None: derived from the number of latents."""
    seed: int
    """Seed of the initial weights, together with the hookpoint."""
    label: str = ""
    """Label of the combination; empty for a single one."""
    across: tuple[str, ...] = ()
    """The hookpoints that a crosscoder reads and writes, or that a layer of a cross-layer transcoder writes."""

    @property
    def wiring(self) -> Wiring:
        """Hookpoints that it reads and writes."""
        if self.cfg.crosscode:
            return Wiring.across(self.across)
        found = Wiring.of(self.hookpoint, transcode=self.cfg.transcode)
        return found._replace(writes=self.across) if self.across and not self.cfg.tie_decoders else found

    def d_in(self, widths: Mapping[str, int]) -> int:
        """Width of what it reads."""
        return sum(widths[hookpoint] for hookpoint in self.wiring.reads)

    def d_out(self, widths: Mapping[str, int]) -> int:
        """Width of what it writes."""
        return sum(widths[hookpoint] for hookpoint in self.wiring.writes)


class RunPlan(NamedTuple):
    """All that a run decides before anything is built."""

    cfg: TrainConfig
    widths: dict[str, int]
    """{hookpoint: d_in}"""
    saes: dict[str, SaePlan]
    """The autoencoders, by name."""
    placement: Placement
    """Which process trains which of them."""
    steps: Steps
    stages: tuple[Stage, ...]
    auxk_dead_after: int
    """Tokens without firing after which AuxK acts on a latent."""
    report_dead_after: int
    """Tokens without firing after which a latent is reported as dead."""
    tokens_per_pass: int
    """Tokens that an autoencoder is given at once."""

    @classmethod
    def of(
        cls,
        cfg: TrainConfig,
        store: ActivationStore,
        combinations: Mapping[str, Combination],
        *,
        processes: int,
        batches_at_once: int,
        before: Mapping[str, Any],
    ) -> "RunPlan":
        """The plan on the data of `store`; `before` is what the run that is resumed derived, {} for a new one.

        Raises ValueError, naming the option, for a choice that does not fit the model, the data or the processes.
        """
        steps = plan_steps(cfg, store, batches_at_once, before)
        saes = plan_saes(combinations, store.chosen)
        _check_tied(saes, store.widths)
        if cfg.finetune is None:
            saes = {name: _with_latents(one, store.widths) for name, one in saes.items()}
        return cls(
            cfg,
            store.widths,
            saes,
            _placement(cfg, saes, store.widths, processes),
            steps,
            _stages(cfg, steps.total, before),
            cfg.dead_feature_threshold or PAPERS_DEAD_THRESHOLD,
            report_dead_after(cfg, steps.total * steps.tokens),
            cfg.batch_size * store.ctx_len // steps.per_batch // cfg.micro_acc_steps,
        )

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, the excluded ones included."""
        return self.steps.total * self.steps.tokens

    @property
    def num_batches(self) -> int:
        """Batches that are read, by all processes."""
        return self.steps.total // self.steps.per_batch * self.steps.batches_at_once

    @property
    def is_sweep(self) -> bool:
        """Whether several autoencoders are trained at the same hookpoint."""
        return len(self.saes) > len({plan.hookpoint for plan in self.saes.values()})

    def held_by(self, rank: int) -> dict[str, SaePlan]:
        """The autoencoders that a process trains, all or a part of each."""
        return {name: plan for name, plan in self.saes.items() if self.placement.holds(rank, name)}

    def learner(self, name: str, shape: SaeShape, stage: Stage) -> LearnerPlan:
        """How the autoencoder `name`, which has this shape, is trained in a stage."""
        per_step = firings(self.steps.tokens, shape.cfg.k, shape.num_latents)
        recipe = Recipe.named(self.cfg.recipe, stage.total, per_step)
        # The whole model sees what an autoencoder selects by itself; and one that is trained already has learned k, and
        # which latents are silent.
        end_to_end, trained = stage.loss_fn != "fvu", self.cfg.finetune is not None or stage.start > 0
        peak = further_peak(stage.total, end_to_end=end_to_end) if trained else PEAK
        if end_to_end or trained:
            recipe = recipe._replace(k_growth=0.0, least_firings=0.0)
        chosen = self.saes[name].lr if stage.loss_fn == self.cfg.loss_fn else None
        derived = peak_lr(shape.num_latents, stage.total, per_step, self.cfg.recipe, peak=peak)
        return LearnerPlan(shape, recipe, derived if chosen is None else chosen)

    def stage(self, step: int) -> Stage:
        """The stage of a step, from 0; after the last step the last one."""
        return next((stage for stage in self.stages if step < stage.stop), self.stages[-1])

    def schedule(self, step: int) -> float:
        """Factor on the peak learning rates at `step`, from 0."""
        stage = self.stage(step)
        return schedule(step - stage.start, stage.total, stage.warmup_steps)

    def together(self) -> list[dict[str, slice]]:
        """The layers of each cross-layer transcoder of several layers, and where the output of each is in that of
        all."""
        found: dict[str, dict[str, slice]] = {}
        for name, plan in self.saes.items():
            if plan.cfg.cross_layer:
                layers = found.setdefault(plan.label, {})
                start = max((own.stop for own in layers.values()), default=0)
                layers[name] = slice(start, start + self.widths[plan.hookpoint])
        return [layers for layers in found.values() if len(layers) > 1]

    def grouped(self, values: Mapping[str, T]) -> dict[str, dict[str, T]]:
        """Values that are by the name of an autoencoder, by its label and its hookpoint."""
        found: dict[str, dict[str, T]] = {}
        for name, plan in self.saes.items():
            found.setdefault(plan.label, {})[plan.hookpoint] = values[name]
        return found


# Steps


def _stages(cfg: TrainConfig, total: int, before: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The stages of a run of `total` steps, or as before, if it is resumed."""
    share = cfg.reconstruct_first
    if share is None:
        share = RECONSTRUCT_FIRST if cfg.recipe == "default" and cfg.finetune is None else 0.0
    first = 0 if cfg.loss_fn == "fvu" else min(round(share * total), total - 1)
    if before:  # those of earlier versions had none
        first = min(int(before.get("reconstruction_steps", 0)), total)
    parts = (0, first, "fvu"), (first, total, cfg.loss_fn)
    return tuple(
        Stage(start, stop, loss_fn, warmup_steps(stop - start, cfg.lr_warmup_steps))
        for start, stop, loss_fn in parts
        if start < stop
    )


def plan_steps(cfg: TrainConfig, store: ActivationStore, at_once: int, before: Mapping[str, Any]) -> Steps:
    """How the data of `store`, read `at_once` batches at a time, are divided; as before, if the run is resumed.

    Raises ValueError for data without a step, or that cannot be so divided.
    """
    chosen = before.get("steps_per_batch", 1) if before else cfg.steps_per_batch
    batches = store.rounds if isinstance(store, LiveStore) else count_steps(cfg, store, at_once)
    tokens = cfg.batch_size * store.ctx_len * at_once
    d_total = sum(store.widths.values())  # the order of tokens must not depend on what is trained on them
    block = batches_per_block(at_once, cfg.batch_size * store.ctx_len * d_total * store.dtype.itemsize)
    per_batch = _steps_per_batch(cfg, batches, tokens, chosen, mixed=block % at_once == 0)
    first = block if before else batches_of_first_block(block, at_once, tokens)
    first = int(before.get("shuffle_first_batches", first))  # all blocks were alike in runs of earlier versions
    return Steps(at_once, block, first, per_batch, tokens // per_batch, batches * per_batch)


def _steps_per_batch(cfg: TrainConfig, batches: int, tokens: int, chosen: int | None, *, mixed: bool) -> int:
    """Number of steps into which `tokens` that come at once, `batches` times, are divided. `mixed`: all with each
    other.
    """
    if chosen is None:
        divides = cfg.recipe == "default" and cfg.loss_fn == "fvu" and mixed
        return steps_per_batch(batches, tokens) if divides else 1
    if tokens % chosen:
        raise ValueError(
            "steps_per_batch must divide batch_size × ctx_len × grad_acc_steps × processes = "
            f"{tokens} tokens, got {chosen}; choose a divisor"
        )
    if chosen > 1 and not mixed:
        raise ValueError(
            f"steps_per_batch must be 1 where {tokens} activations are too large to be mixed in memory, got "
            f"{chosen}; leave it out, and lower --batch_size or --grad_acc_steps for more steps"
        )
    return chosen


def report_dead_after(cfg: TrainConfig, total_tokens: int) -> int:
    """Tokens without firing after which a latent is reported as dead: chosen, or derived from the run's length."""
    if cfg.dead_feature_threshold is not None:
        return cfg.dead_feature_threshold
    longest = PAPERS_DEAD_THRESHOLD
    return longest if cfg.recipe == "gao2024" else min(longest, max(1, total_tokens // 20))


def short_run_note(shapes: Iterable[SaeShape], tokens: int) -> str | None:
    """A sentence for a run in which not every latent can fire k times, with how many can; None for a longer one."""
    largest = max((shape.num_latents for shape in shapes), default=0)
    if tokens >= largest:
        return None
    return (
        f"the run is short for {largest:,} latents: in {tokens:,} tokens at most {tokens:,} of them can fire k times; "
        f"give more text, or --num_latents {tokens} or fewer"
    )


# Autoencoders


def combinations(cfg: TrainConfig) -> dict[str, Combination]:
    """Combinations to train at every hookpoint, by label. Raises ValueError if two of them are the same."""
    found = [Combination(*each) for each in product(several(cfg.sae), several(cfg.lr), several(cfg.seed))]
    labels = _labels([_choices(*combination) for combination in found])
    if twice := [label for index, label in enumerate(labels) if label in labels[:index]]:
        raise ValueError(f"the configurations to train must differ, got {twice[0]} twice; leave one of them out")
    return dict(zip(labels, found, strict=True))


def plan_saes(combinations: Mapping[str, Combination], hookpoints: Iterable[str]) -> dict[str, SaePlan]:
    """The autoencoders of a run at the chosen `hookpoints`, by name, combination after combination."""
    chosen = list(hookpoints)
    return {
        f"{label}/{plan.hookpoint}" if label else plan.hookpoint: plan
        for label, combination in combinations.items()
        for plan in _plans_of(combination, label, chosen)
    }


def names(combinations: Mapping[str, Combination], hookpoints: list[str]) -> list[str]:
    """What dictionaries at the chosen `hookpoints` are called, without the labels of combinations, each once."""
    plans = (plan for each in combinations.values() for plan in _plans_of(each, "", hookpoints))
    return list(dict.fromkeys(plan.hookpoint for plan in plans))


def _plans_of(combination: Combination, label: str, hookpoints: list[str]) -> list[SaePlan]:
    """Plans of a combination: one at each hookpoint, or one for all."""
    if combination.cfg.crosscode:
        return [SaePlan(CROSSCODER, *combination, label, tuple(hookpoints))]
    if of_two := next((name for name in hookpoints if lm.side_of(name)), None):
        raise ValueError(
            f"crosscode must be on for two models, whose places one dictionary reads, got it off with {of_two}; add "
            "--crosscode, or give one model"
        )
    later = range(len(hookpoints)) if combination.cfg.cross_layer else ()
    if later and (pair := next((name for name in hookpoints if ARROW in name), None)):
        raise ValueError(
            f"hookpoints must name modules for cross_layer, which says itself what each writes, got {pair}; "
            "name the modules"
        )
    if later:
        return [SaePlan(hookpoints[i], *combination, label, tuple(hookpoints[i:])) for i in later]
    return [SaePlan(hookpoint, *combination, label) for hookpoint in hookpoints]


def _check_tied(plans: Mapping[str, SaePlan], widths: Mapping[str, int]) -> None:
    """Raise ValueError for layers of different widths that a tied decoder is to write, or numbers of latents that it is
    to decode."""
    for plan in plans.values():
        found = {name: widths[name] for name in plan.across if plan.cfg.tie_decoders}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{name} of {width}" for name, width in found.items())
            raise ValueError(
                f"tie_decoders needs modules that are equally wide, got {listed}; choose others with --hookpoints, or "
                "leave out --tie_decoders"
            )
        by_target = [each for each in plans.values() if each.label == plan.label and each.cfg.tied_by_target]
        counts = {each.hookpoint: each.cfg.latents_for(each.d_in(widths)) for each in by_target}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} of {latents}" for name, latents in counts.items())
            raise ValueError(
                f"tie_decoders target needs one number of latents, got {listed}; give it with --num_latents"
            )


def _with_latents(plan: SaePlan, widths: Mapping[str, int]) -> SaePlan:
    """The plan of a crosscoder with its number of latents, which follows from the widest of its hookpoints."""
    if not plan.cfg.crosscode or plan.cfg.num_latents:
        return plan
    widest = max(widths[hookpoint] for hookpoint in plan.across)
    return plan._replace(cfg=replace(plan.cfg, num_latents=widest * plan.cfg.expansion_factor))


def _choices(sae: SaeConfig, lr: float | None, seed: int) -> dict[str, Any]:
    """Fields in which combinations can differ, without those that have no effect."""
    choices = asdict(sae) | {"lr": lr, "seed": seed}
    del choices["expansion_factor" if sae.num_latents else "num_latents"]
    return choices


def _plain(value: Any) -> str:
    """A value as part of a folder's name."""
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def _labels(combinations: list[dict[str, Any]]) -> list[str]:
    """The values that differ, for each combination: `k32_x8_lr0.001`. Empty for a single one."""
    names = dict.fromkeys(("k", *asdict(SaeConfig()), "lr", "seed"))
    varying = [name for name in names if len({str(choices.get(name)) for choices in combinations}) > 1]
    if len(combinations) > 1 and not varying:
        varying = ["k"]
    return [
        "_".join(f"{SHORT.get(name, name)}{_plain(choices[name])}" for name in varying if name in choices)
        for choices in combinations
    ]


def _placement(cfg: TrainConfig, saes: Mapping[str, SaePlan], widths: Mapping[str, int], processes: int) -> Placement:
    """Which process trains what: by the cost of the product with the encoder."""
    d_in = {name: plan.d_in(widths) for name, plan in saes.items()}
    found = placement_of(
        {name: d_in[name] * plan.cfg.latents_for(d_in[name]) for name, plan in saes.items()},
        {name: plan.wiring.hookpoints for name, plan in saes.items()},
        size=processes,
        shards=cfg.shard_latents,
        distribute=cfg.distribute_layers,
    )
    check_each_has_a_layer(found, saes)
    return found


def check_each_has_a_layer(placement: Placement, saes: Mapping[str, SaePlan]) -> None:
    """Raise ValueError where a process would wait for the layers of a cross-layer transcoder of which it has none."""
    if placement.owners is None:
        return
    for label in {plan.label for plan in saes.values() if plan.cfg.cross_layer}:
        layers = [name for name, plan in saes.items() if plan.label == label and plan.cfg.cross_layer]
        if len(layers) > 1 and len({placement.owners[name] for name in layers}) < placement.groups:
            groups = "" if placement.shards == 1 else f" in {placement.groups} groups"
            raise ValueError(
                f"distribute_layers must give every process a layer of {label or 'the cross-layer transcoder'}, got "
                f"{len(layers)} modules for {placement.size} processes{groups}; start fewer, or leave out "
                "--distribute_layers"
            )
