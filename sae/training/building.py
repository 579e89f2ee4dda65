"""What a run needs is made as its plan says: autoencoders, new or to be trained further, their learners, their data."""

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sae import lm
from sae.activations.live import LiveStore
from sae.activations.sequences import SequenceSource
from sae.activations.shuffle import ShuffleBuffer
from sae.activations.source import counted
from sae.activations.store import ActivationStore
from sae.config import SaeConfig
from sae.dictionary.autoencoder import Sae, SaePart
from sae.dictionary.spec import Saved, Spec
from sae.dictionary.wiring import ARROW
from sae.parallel.world import World
from sae.training.end_to_end import EndToEnd
from sae.training.learner import SaeLearner, is_per_latent
from sae.training.run_plan import LearnerPlan, RunPlan, SaePlan


def make_saes(
    plan: RunPlan,
    world: World,
    device: torch.device,
    tell: Callable[[str], None],
    typed: Collection[str],
    *,
    begun: Path | None,
) -> dict[str, Sae]:
    """The autoencoders that this process holds, or its parts of them, by name.

    Those to be trained further are in `begun`, a checkpoint of this run, or where `finetune` says. Options that were
    `typed` must be theirs, also where they say the default. Raises ValueError for one that is not as the plan asks.
    """
    held = plan.held_by(world.rank)
    if plan.cfg.finetune is None:
        return {name: _new(one, plan.widths, world, device) for name, one in held.items()}
    source = begun or plan.cfg.finetune
    called = {name: one.hookpoint if begun is None else name for name, one in held.items()}
    wanted = dict.fromkeys(called.values())
    if Path(source).is_file():  # which may be of the one hookpoint that is asked for: of all, as one process asks
        wanted = dict.fromkeys(one.hookpoint for one in plan.saes.values())
    found = Sae.load_many(source, wanted, device) if held else {}
    starts = {name: _start(one, found[called[name]], plan, source, tell, typed) for name, one in held.items()}
    return {name: _copy(start, world, device) for name, start in starts.items()}


def _new(plan: SaePlan, widths: Mapping[str, int], world: World, device: torch.device) -> Sae:
    # A seed of its own, so that an autoencoder does not depend on which others are trained beside it. Tied by target,
    # latent i of all layers reads the same direction at first, as row i of each decoder serves them all.
    places = plan.across[-1:] if plan.cfg.tied_by_target else plan.wiring.writes
    generator = torch.Generator().manual_seed(plan.seed + zlib.crc32("+".join(places).encode()))
    d_in, d_out = plan.d_in(widths), plan.d_out(widths)
    return _sae(d_in, plan.cfg, world, d_out=d_out, device=device, generator=generator, spec=_spec(plan, widths))


def _spec(plan: SaePlan, widths: Mapping[str, int]) -> Spec | None:
    """What a new dictionary's configuration does not say: the hookpoints of a crosscoder, and of A->B."""
    (reads, writes), d_in, d_out = plan.wiring, plan.d_in(widths), plan.d_out(widths)
    shape = plan.cfg, d_in, d_out, plan.cfg.latents_for(d_in)
    if plan.across:
        parts = () if plan.cfg.tie_decoders else tuple(widths[name] for name in writes)
        return Spec(*shape, reads=() if plan.cfg.crosscode else reads, writes=plan.across, widths=parts)
    return Spec(*shape, reads=reads, writes=writes) if ARROW in plan.hookpoint else None


def _sae(d_in: int, cfg: SaeConfig, world: World, **options: Any) -> Sae:
    """A new autoencoder, or this process's part of one."""
    if world.placement.shards == 1:
        return Sae(d_in, cfg, **options)
    return SaePart(d_in, cfg, shards=world.latent_shards(), **options)


def _start(
    plan: SaePlan, sae: Sae, run: RunPlan, source: Path | str, tell: Callable[[str], None], typed: Collection[str]
) -> Sae:
    """An autoencoder to start from, which has what the plan asks for."""
    name = plan.hookpoint
    for option, default in vars(SaeConfig()).items():
        if option == "inference_l0":  # which is set anew at the end
            continue
        given, found = getattr(plan.cfg, option), getattr(sae, option, getattr(sae.cfg, option))
        if given != found and (given != default or option in typed):
            raise ValueError(
                f"{option} comes with finetune, and {name} in {source} has {found}, got {given}; leave out "
                f"--{'no_' * (given is False)}{option}"
            )
    if sae.cfg.transcode and not plan.cfg.transcode:
        raise ValueError(
            f"transcode must be given to train a transcoder further, which {name} in {source} is; add --transcode"
        )
    if sae.cfg.cross_layer and not plan.cfg.cross_layer:
        raise ValueError(
            f"cross_layer must be given to train a cross-layer transcoder further, of which {name} in {source} is a "
            "layer; add --cross_layer, with all of its hookpoints"
        )
    if plan.across and sae.spec.writes != plan.across:
        raise ValueError(
            f"finetune: {name} in {source} is of {', '.join(sae.spec.writes)}, got {', '.join(plan.across)}; "
            "give its own with --hookpoints"
        )
    for found, wanted in ((sae.d_in, plan.d_in(run.widths)), (sae.d_out, plan.d_out(run.widths))):
        if found != wanted:
            raise ValueError(
                f"finetune: {name} in {source} must be {wanted} wide, as the model is, got {found}; "
                "is it of another model?"
            )
    try:
        start = sae.to_continue()
    except ValueError as error:
        raise ValueError(f"finetune: {name} in {source} cannot be trained further: {error}; train a new one") from None
    if start.cfg != sae.cfg:
        tell(f"{name}: the rows of W_dec in {source} differ in length, so that they are trained freely")
    if plan.cfg.inference_l0 is None:
        return start
    spec, tensors = start.saved()
    spec = replace(spec, cfg=replace(spec.cfg, inference_l0=plan.cfg.inference_l0))
    return Sae.from_saved(Saved(spec, tensors), start.device)


def _copy(start: Sae, world: World, device: torch.device) -> Sae:
    tensors = {key: t.clone() for key, t in world.part(start.state_dict(), is_split=is_per_latent).items()}
    if world.placement.shards == 1:
        return Sae.of_tensors(start.cfg, tensors, like=start.spec)
    cfg = replace(start.cfg, num_latents=start.num_latents)
    sae = _sae(start.d_in, cfg, world, d_out=start.d_out, device=device, spec=start.spec)
    sae.load_state_dict(tensors)
    return sae


def make_learners(
    plan: RunPlan, saes: Mapping[str, Sae], plans: Mapping[str, LearnerPlan], world: World, device: torch.device
) -> dict[str, SaeLearner]:
    """The learners of the autoencoders that this process holds, by name."""
    return {
        name: SaeLearner(
            sae,
            tokens_per_step=plan.steps.tokens,
            auxk_alpha=plan.cfg.auxk_alpha,
            dead_feature_threshold=plan.auxk_dead_after,
            report_dead_after=plan.report_dead_after,
            compute_dtype=lm.compute_dtype(device),
            recipe=plans[name].recipe,
            encode_in_8bit=plan.cfg.encode_in_8bit if plan.cfg.loss_fn == "fvu" else False,
            tokens_per_pass=plan.tokens_per_pass,
            shards=world.latent_shards(),
        )
        for name, sae in saes.items()
    }


def make_source(
    plan: RunPlan, store: ActivationStore, learners: Mapping[str, SaeLearner], world: World
) -> tuple[Any, EndToEnd | None]:
    """Activations, mixed over many sequences; or the sequences themselves for a loss of the whole model."""
    cfg, steps = plan.cfg, plan.steps
    if cfg.loss_fn == "fvu":
        buffer = ShuffleBuffer(
            store.source,
            steps.batches_per_block,
            seed=cfg.data_seed,
            step=steps.batches_at_once,
            split=steps.per_batch,
            first=steps.batches_of_first_block,
            rank=world.rank,
            ranks=world.size,
        )
        return buffer, None
    live = live_store(store)
    end_to_end = EndToEnd(
        live.model,
        plan.grouped(learners),
        lambda tokens: counted(tokens, cfg.exclude_tokens, cfg.exclude_positions),
        loss_fn=cfg.loss_fn,
        tokens_per_step=steps.tokens,
        ctx_len=live.ctx_len,
    )
    source = SequenceSource(
        live.batches, live.source.read, step=steps.batches_at_once, rank=world.rank, ranks=world.size
    )
    return source, end_to_end


def live_store(store: ActivationStore) -> LiveStore:
    """The store of a run that needs more of the language model than its activations."""
    assert isinstance(store, LiveStore)  # what else there is refuses such a run
    return store
