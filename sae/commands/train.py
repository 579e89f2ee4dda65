"""`sae MODEL DATASET`: train."""

from collections.abc import Collection
from dataclasses import replace

from sae import lm
from sae.activations.cache.read import ActivationCache
from sae.activations.cached import adopted
from sae.activations.live import LiveStore
from sae.activations.reading import Reading, plan_reading
from sae.commands.load import check_model, load_language_model, load_text
from sae.config import RunConfig
from sae.formats.hub import find_anywhere
from sae.ops import eight_bit
from sae.runs.log import note
from sae.training.launch import Launch, join
from sae.training.memory import return_freed_memory
from sae.training.run_plan import names
from sae.training.trainer import SaeTrainer


def train(cfg: RunConfig, typed: Collection[str] = ()) -> int:
    """Load model and data, train, report. The cheap checks come first, each before the work that it would spoil.

    Options that were `typed` count as given also where they say the default.
    """
    world = join(cfg)
    devices = world.local_devices(lm.check_device(cfg.device))
    if cfg.encode_in_8bit:
        eight_bit.check_has_product(devices[0])
    if cfg.activations is not None:
        cache = ActivationCache(cfg.activations, device=devices[0])
        cfg = replace(cfg, **adopted(cfg, cache.header.options, typed))
        return fit(SaeTrainer(cfg, cache, launch=Launch.of(cfg, world=world, typed=typed)))
    launch = Launch.of(cfg, world=world, typed=typed)
    cfg, reading = launch.cfg, plan_text(launch)
    return_freed_memory()
    head = cfg.loss_fn != "fvu" or cfg.eval_every > 0
    store = LiveStore(cfg, reading, load_language_model(cfg, devices[0], devices, head=head))
    return fit(SaeTrainer(cfg, store, launch=launch))


def plan_text(launch: Launch[RunConfig]) -> Reading:
    """The text, as batches of tokens, and the hookpoints that are chosen: all that needs no weights."""
    cfg = launch.cfg
    skeleton, hookpoints = check_model(cfg)
    if cfg.finetune is not None and launch.begun is None:
        find_anywhere(cfg.finetune, names(launch.combinations, hookpoints))
    with launch.world.one_first(note, "prepared the data"):
        return plan_reading(
            cfg,
            load_text(cfg, skeleton),
            skeleton,
            hookpoints,
            launch.batches_at_once,
            checked=cfg.ctx_len,
            whole_documents=launch.whole_documents,
            wait=launch.stop.wait,
        )


def fit(trainer: SaeTrainer) -> int:
    """Train, and return the exit status."""
    try:
        trainer.fit()
    except KeyboardInterrupt as stop:
        if trainer.folder.path.is_dir():
            stop.add_note(trainer.what_resumes())
        raise
    trainer.world.close()
    return 130 if trainer.stopped else 0
