"""A checkpoint with state of every kind, and the files of a folder."""

from pathlib import Path

import torch
from oracle import make_sae

from sae import Sae
from sae.runs.checkpoint import Checkpoint
from sae.training.learner import SaeLearner

NAMES = ["layers.0", "layers.10.mlp", "h.2.input"]


def make_checkpoint() -> Checkpoint:
    """State of every kind: weights, moments that are not 0, counters, a place in the data."""
    saes = {name: make_sae(8, 16, 3, dtype=torch.float32) for name in NAMES}
    states = {name: trained(one).state_dict() for name, one in saes.items()}
    return Checkpoint(saes, states, {"step": 3, "source": {"index": 1, "rest": [1, 2], "place": None}})


def trained(one: Sae) -> SaeLearner:
    learner = SaeLearner(
        one, tokens_per_step=32, auxk_alpha=1 / 32, dead_feature_threshold=64, compute_dtype=torch.float32
    )
    learner.initialise(torch.randn(32, 8))
    for _ in range(3):
        learner.accumulate(torch.randn(32, 8))
        learner.update(1e-3)
    return learner


def files_in(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
