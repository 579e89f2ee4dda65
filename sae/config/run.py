"""`sae MODEL DATASET`: a training run."""

from dataclasses import dataclass
from typing import ClassVar

from .checks import several
from .source import TextConfig
from .train import TrainConfig


@dataclass
class RunConfig(TrainConfig, TextConfig):
    """A training run from the command line: which model, which text, and how to train."""

    _trains: ClassVar[bool] = True
    """Whether dictionaries are trained, and not only what they will read is chosen."""

    activations: str | None = None
    """Train on the activations in this folder or behind this address, which sae cache wrote, without the language
    model. The cache fixes MODEL, DATASET and how they are read; leave these options out."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        TextConfig.__post_init__(self)
        from_cache = self._trains and self.activations is not None
        if self._trains and self.model_b is not None:
            self._check_crosscoders()
        if self.streaming and self.max_tokens is None and not from_cache:
            raise ValueError(
                "--streaming has no end that is known beforehand, and the learning rate decays over the "
                "whole run; give --max_tokens"
            )

    def _check_crosscoders(self) -> None:
        """Raise ValueError for dictionaries of two models that are no crosscoders of them."""
        if not all(sae.crosscode for sae in several(self.sae)):
            raise ValueError(
                f"model_b must come with crosscode, whose dictionary reads both models, got {self.model_b} without; "
                "add --crosscode, or train on each model by itself"
            )
