"""`sae MODEL DATASET`: train."""

from dataclasses import replace
from functools import partial

from sae import lm
from sae.activations.cache.read import ActivationCache
from sae.activations.feed import adopted
from sae.commands.load import check_model, load_checked_text, load_language_model
from sae.config import RunConfig
from sae.formats import eleuther
from sae.ops import eight_bit
from sae.parallel.world import World
from sae.runs.folder import RunFolder, continue_after_restart
from sae.runs.log import note
from sae.training.run_plan import plan_saes
from sae.training.trainer import SaeTrainer, check_processes


def train(cfg: RunConfig) -> int:
    """Load model and data, train, report. The cheap checks come first, each before the work that it would spoil."""
    world = World.from_environment(shard_latents=cfg.shard_latents)
    check_processes(cfg, world.size)
    devices = world.local_devices(lm.check_device(cfg.device))
    if cfg.encode_in_8bit:
        eight_bit.check_device(devices[0])
    if cfg.activations is not None:
        cache = ActivationCache(cfg.activations, device=devices[0])
        cfg = replace(cfg, **adopted(cfg, cache.header.options))
        return fit(SaeTrainer(cfg, cache))
    cfg = world.from_main(partial(continue_after_restart, cfg, restarted=world.restarted))
    world.from_main(partial(RunFolder.plan, cfg))
    skeleton, hookpoints = check_model(cfg)
    plan_saes(cfg, hookpoints)
    if cfg.finetune is not None:
        eleuther.find(eleuther.locate(cfg.finetune), hookpoints)
    with world.one_first(note, "prepared the data"):
        dataset = load_checked_text(cfg, skeleton)
    head = cfg.loss_fn != "fvu" or cfg.eval_every > 0
    return fit(SaeTrainer(cfg, dataset, load_language_model(cfg, devices[0], devices, head=head)))


def fit(trainer: SaeTrainer) -> int:
    """Train, and return the exit status."""
    try:
        trainer.fit()
    except KeyboardInterrupt as stop:
        if trainer.folder.path.is_dir():
            stop.add_note(f"what was saved before is in {trainer.folder.path}")
        raise
    trainer.world.close()
    return 130 if trainer.stopped else 0
