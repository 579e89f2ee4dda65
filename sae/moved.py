"""Modules that had another name before they moved into rooms: importing one says where it is. For one release."""

from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "sae.activations.feed": "sae.activations.store and sae.activations.live",
    "sae.autoencoder": "sae.dictionary.autoencoder",
    "sae.cache": "sae.commands.cache",
    "sae.capped": "sae.training.capped_adam",
    "sae.checkpoint": "sae.runs.checkpoint",
    "sae.cli": "sae.commands.parser",
    "sae.data.activations": "sae.activations.source",
    "sae.data.ahead": "sae.data.prefetch",
    "sae.data.cache_format": "sae.activations.cache.format",
    "sae.data.cache_read": "sae.activations.cache.read",
    "sae.data.cache_write": "sae.activations.cache.write",
    "sae.data.place": "sae.data.position",
    "sae.data.shuffle": "sae.activations.shuffle",
    "sae.dead": "sae.training.dead_latents",
    "sae.disk": "sae.storage.files",
    "sae.distributed": "sae.parallel.world",
    "sae.end_to_end": "sae.training.end_to_end",
    "sae.evaluate": "sae.evaluation",
    "sae.feed": "sae.activations.store and sae.activations.live",
    "sae.gradients": "sae.dictionary.gradients",
    "sae.graphs": "sae.training.cuda_graphs",
    "sae.interrupt": "sae.runs.stop_signals",
    "sae.learner": "sae.training.learner",
    "sae.lock": "sae.storage.lock",
    "sae.log": "sae.runs.log",
    "sae.losses": "sae.dictionary.losses",
    "sae.massive": "sae.training.massive_tokens",
    "sae.memory": "sae.training.memory",
    "sae.optim": "sae.training.adam and sae.training.recipe",
    "sae.peers": "sae.dictionary.shards",
    "sae.placement": "sae.parallel.placement",
    "sae.run": "sae.runs.folder",
    "sae.saver": "sae.runs.background_save",
    "sae.select": "sae.dictionary.selection",
    "sae.sweep": "sae.training.run_plan",
    "sae.trainer": "sae.training.trainer",
}
"""Where each module is now."""


class Signpost:
    """Last finder of imports: raises ModuleNotFoundError, in one line, for a module that moved."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name in MOVED:
            raise ModuleNotFoundError(
                f"{name} is now {MOVED[name]}; what most users need is in sae, sae.data, sae.lm and sae.ops"
            )
