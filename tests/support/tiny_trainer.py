"""Trainers of a tiny model on tiny tokens, for tests of one member of the family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_models import tiny_model, tiny_tokens

from sae import SaeConfig, SaeTrainer, TrainConfig
from sae.data import ActivationCache

Make = Callable[..., SaeTrainer]


def maker(folder: Path, shape: SaeConfig, **defaults: Any) -> Make:
    """What makes a trainer of dictionaries of this shape, with these options; runs are written into `folder`.

    A cache brings its hookpoints with it.
    """

    def make(data: Any = None, model: Any = "tiny", sae: Any = None, **changes: Any) -> SaeTrainer:
        options = {"batch_size": 4, "save_dir": str(folder), "log_to_wandb": False, "lr": 3e-3} | defaults | changes
        if isinstance(data, ActivationCache) and "hookpoints" not in changes:
            options.pop("hookpoints", None)
        model = tiny_model("gpt_neox") if model == "tiny" else model
        return SaeTrainer(
            TrainConfig(sae or shape, **options), tiny_tokens(84, 8, seed=1) if data is None else data, model
        )

    return make
