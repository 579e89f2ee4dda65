"""Which autoencoders a run trains, as plain values: decided here, carried out by the trainer."""

from collections.abc import Iterable
from typing import NamedTuple

from sae.config import SaeConfig, TrainConfig


class SaePlan(NamedTuple):
    """One autoencoder to train: what it reads, its shape, and what it does not share with the others."""

    hookpoint: str
    cfg: SaeConfig
    lr: float | None
    """Peak learning rate. None: derived from the number of latents."""
    seed: int
    """Of the initial weights, together with the hookpoint."""


def plan_saes(cfg: TrainConfig, hookpoints: Iterable[str]) -> dict[str, SaePlan]:
    """The autoencoders of a run, by name: the hookpoint's."""
    return {hookpoint: SaePlan(hookpoint, cfg.sae, cfg.lr, cfg.seed) for hookpoint in hookpoints}
