"""A cache of a few hundred tokens, each of whose activations says which token it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae.activations.cache import write
from sae.activations.cache.format import TRAIN, CacheHeader, row_bytes
from sae.activations.cache.read import ActivationCache
from sae.activations.source import Activations, LiveActivations
from sae.data.tokens import TokenBatches


class Died(Exception):
    """What kill -9 is to a process."""


SEQ, COUNT, BATCH = 8, 45, 4
WIDTHS = {"wide": 6, "narrow": 4}
HELD_OUT = 5


def harvest(tokens: Tensor) -> Activations:
    """Every token's activation says which token it is."""
    return {name: tokens.unsqueeze(-1) * 0.5 + torch.arange(width) for name, width in WIDTHS.items()}


def live(**exclude: Any) -> tuple[TokenBatches, LiveActivations]:
    """45 sequences of 8 different tokens, 5 of them held out."""
    tokens = torch.arange(COUNT * SEQ).view(COUNT, SEQ)
    batches = TokenBatches(tokens, BATCH, seed=3, held_out=HELD_OUT)
    return batches, LiveActivations(batches, harvest, **exclude)


def header(*, shuffled: bool = True, dtype: str = "float32", num_shards: int = 5, **exclude: Any) -> CacheHeader:
    options = {"exclude_tokens": [], "exclude_positions": []} | exclude
    return CacheHeader(options, WIDTHS, [], dtype, shuffled, 3, SEQ, COUNT, num_shards)


def rows_of(cache: ActivationCache, name: str = "wide") -> Tensor:
    return cache.rows(TRAIN, name).read(0, cache.num_tokens)


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def with_small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and buffers of a few rows."""
    monkeypatch.setattr(write, "SHARD_BYTES", 64 * row_bytes(WIDTHS["wide"], "float32"))
    monkeypatch.setattr(write, "BUFFER_BYTES", 3 * BATCH * SEQ * sum(WIDTHS.values()) * 4)
    monkeypatch.setattr(write, "APPEND_BYTES", 1)
