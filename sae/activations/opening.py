"""Store of a run, by what the run was given."""

from typing import Any

from torch import nn

from sae.activations.cache.read import ActivationCache
from sae.activations.cached import CachedStore
from sae.activations.live import LiveStore
from sae.activations.store import ActivationStore
from sae.config import TrainConfig
from sae.data.retry import Wait


def open_store(
    cfg: TrainConfig,
    dataset: Any,
    model: nn.Module | None,
    batches_at_once: int | None,
    *,
    whole_documents: bool,
    wait: Wait,
) -> ActivationStore:
    """Store of `model` on `dataset`, or of the cache that `dataset` is; a store is what it is.

    Raises ValueError, naming the option, for a choice that does not fit.
    """
    if isinstance(dataset, ActivationStore):
        return dataset
    if isinstance(dataset, ActivationCache):
        if model is not None:
            raise ValueError("model must be left out for a cache of activations, which needs none; pass None")
        return CachedStore(cfg, dataset)
    if model is None:
        raise ValueError(f"model must be given unless the data are an ActivationCache, got {type(dataset).__name__}")
    return LiveStore(cfg, dataset, model, batches_at_once, whole_documents=whole_documents, wait=wait)
