"""How good the autoencoders in training are on tokens that are held out."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice

import torch

from sae.activations.live import LiveStore
from sae.activations.source import Batch
from sae.activations.store import ActivationStore
from sae.config import TrainConfig
from sae.dictionary.autoencoder import Sae
from sae.dictionary.shards import LatentShards
from sae.evaluation.evaluate import evaluate_many
from sae.evaluation.reconstruction import ReconstructionMetrics
from sae.runs.log import Record

_MOST_KEPT = 2**30
"""Bytes of activations that are kept, at most."""
EVAL_TOKENS = 16_384
"""Held-out tokens that --eval_every measures on, at most, and at least a batch."""


class HeldOut:
    """The held-out tokens and their activations, which the language model makes once where they are asked for twice."""

    def __init__(self, store: ActivationStore) -> None:
        self._store = store
        self._kept: list[Batch] | None = None

    def batches(self, *, keep: bool = False) -> Iterator[Batch]:
        """All of them. What was gone through with `keep` is there the next time, unless it takes over 1 GiB."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] = []
        room = _MOST_KEPT if keep else 0
        for batch in self._store.held_out_batches():
            room -= sum(acts.nbytes for acts in batch.activations.values())
            if room >= 0:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        self._kept = kept if room >= 0 else None


def of_all_parts(metrics: ReconstructionMetrics, shards: LatentShards) -> ReconstructionMetrics:
    """The metrics of an autoencoder. This process holds one of its equal parts, the `shards` the others."""
    shares = torch.tensor([metrics.l0, metrics.unused_fraction, metrics.firings], dtype=torch.float64)
    l0, unused, firings = shards.sum_(shares).tolist()
    return metrics._replace(l0=l0, unused_fraction=unused / shards.parts, firings=firings / shards.parts)


def evaluate_grafted(cfg: TrainConfig, live: LiveStore, saes: Mapping[str, Mapping[str, Sae]]) -> Record:
    """What `sae eval` measures, on the first held-out tokens: `<name>/eval_<metric>`, and `all/…` at once.

    `saes` are by label and hookpoint.
    """
    count = max(1, EVAL_TOKENS // (cfg.batch_size * live.ctx_len))
    found = evaluate_many(
        live.model,
        list(islice(live.tokens.held_out_batches(), count)),
        saes,
        exclude_tokens=cfg.exclude_tokens,
        exclude_positions=cfg.exclude_positions,
    )
    return {
        f"{label}/{hookpoint}/eval_{metric}".lstrip("/"): value
        for (label, hookpoint), quality in found.qualities.items()
        for metric, value in quality.metrics.items()
        if math.isfinite(value)
    }
