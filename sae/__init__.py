"""Train k-sparse autoencoders on every layer of a language model at once, on the fly."""

import sys
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sae.moved import Signpost

if TYPE_CHECKING:
    from sae.config import RunConfig, SaeConfig, TrainConfig
    from sae.dictionary.autoencoder import Encoded, Sae, SaeOutput
    from sae.evaluation.evaluate import Evaluation, evaluate
    from sae.lm.graft import Latents, graft
    from sae.training.trainer import SaeTrainer

__all__ = [
    "Encoded", "Evaluation", "Latents", "RunConfig", "Sae", "SaeConfig", "SaeOutput", "SaeTrainer", "TrainConfig",
    "evaluate", "graft",
]  # fmt: skip

_HOMES = {
    "Encoded": "dictionary.autoencoder", "Sae": "dictionary.autoencoder", "SaeOutput": "dictionary.autoencoder",
    "RunConfig": "config", "SaeConfig": "config", "TrainConfig": "config",
    "SaeTrainer": "training.trainer",
    "Evaluation": "evaluation.evaluate", "evaluate": "evaluation.evaluate",
    "Latents": "lm.graft", "graft": "lm.graft",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `sae --help` need not wait for PyTorch."""
    if name == "__version__":
        return version("sae")
    if name not in _HOMES:
        raise AttributeError(f"module 'sae' has no attribute {name!r}")
    return getattr(import_module(f"sae.{_HOMES[name]}"), name)


sys.meta_path.append(Signpost)  # last: it is asked for what nobody else has found
