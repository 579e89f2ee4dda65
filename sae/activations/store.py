"""What a run reads: activations to train on and held-out ones. The trainer cannot tell one store from another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from sae import lm
from sae.activations.cache.read import ActivationCache
from sae.activations.reading import Extent
from sae.activations.source import ActivationSource, Batch


class HeldOut(Protocol):
    """Tokens that are held out, and their activations."""

    def held_out_batches(self) -> Iterator[Batch]:
        """The held-out tokens and their activations."""

    def first_held_out(self) -> Batch:
        """The first held-out tokens and their activations, for a look: a batch, or less of it where that costs less."""
        return next(self.held_out_batches())


@runtime_checkable
class ActivationStore(Extent, HeldOut, Protocol):
    """Activations to train on, and some that are held out."""

    model_name: str
    data_seed: int
    """Seed of the order of the data, and so of what is held out."""
    device: torch.device
    chosen: list[str]
    """Where to train: hookpoints, and A->B."""
    widths: dict[str, int]
    """{hookpoint: d_in} of all that is read for it."""
    dtype: torch.dtype
    """Type of the activations."""
    read_with: dict[str, Any]
    """Options with which the data were read, where they are not the run's own."""

    @property
    def num_sequences(self) -> int | None:
        """Sequences of the data, the held-out ones included; None for a stream."""

    @property
    def source(self) -> ActivationSource:
        """Source of the activations to train on."""

    @property
    def batch_index(self) -> int:
        """How many batches of it were read."""

    @property
    def held_out_by(self) -> str:
        """Kind of what is held out: whole `documents`, or `sequences`."""

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the weights of the `model` (and `model_b`), of the `held_out` sequences, and of a cache."""

    def about_held_out(self) -> list[str]:
        """Sentences on how many held-out tokens stand in the training text too."""


def model_name(dataset: Any, model: nn.Module | None) -> str:
    """Name of the language model, also of a cache's or a store's; empty if unknown."""
    if isinstance(dataset, ActivationStore):
        return dataset.model_name
    if isinstance(dataset, ActivationCache):
        return str(dataset.header.options["model"])
    if model is None:
        return ""
    names = [str(getattr(one.config, "_name_or_path", "")) for one in lm.models_in(model).values()]
    return names[0] if len(names) == 1 else "-".join(Path(name).name or "model" for name in names)
