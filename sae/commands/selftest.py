"""`sae selftest`: train on synthetic activations of known features, and say how many of them are found."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sae import lm
from sae.activations.synthetic import SyntheticFeed
from sae.config import SaeConfig, SelftestConfig
from sae.dictionary.autoencoder import Sae
from sae.evaluation.recovery import Recoveries, recovery
from sae.parallel.world import check_alone
from sae.report.selftest import report_selftest
from sae.runs.log import Progress
from sae.storage.files import check_writable
from sae.training.trainer import SaeTrainer


def selftest(cfg: SelftestConfig) -> int:
    """Train, compare with the features, report."""
    check_alone("sae selftest")
    if cfg.out is not None:
        if Path(cfg.out).exists():
            raise ValueError(f"out must be a new file, got {cfg.out}; choose another --out")
        check_writable("out", Path(cfg.out))
    device = lm.check_device(cfg.device)
    report_selftest(recoveries(cfg, device), cfg)
    return 0


def recoveries(cfg: SelftestConfig, device: torch.device) -> dict[str, Recoveries]:
    """How well each combination of options finds the features, by its label, and what stands beside it."""
    feed = SyntheticFeed(cfg, device)
    saes = train_on(cfg, feed)
    sample, directions = feed.held_out_sample(), feed.features.directions
    return {
        label: Recoveries(
            *(
                recovery(one, directions, *sample)
                for one in (sae, random_rows(sae, cfg.data_seed), true_rows(sae, feed))
            )
        )
        for label, sae in saes.items()
    }


def train_on(cfg: SelftestConfig, feed: SyntheticFeed) -> dict[str, Sae]:
    """The dictionaries, by label, trained by the product's own trainer. Nothing is written."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = SaeTrainer(replace(cfg, save_dir=folder), feed)
        trainer.initialise()
        total = trainer.total_steps * trainer.tokens_per_step
        with Progress(total=total, what="training") as bar:
            while trainer.step < trainer.total_steps and trainer.train_step():
                bar.reach(trainer.step * trainer.tokens_per_step)
        trainer.calibrate()
    return {trainer.plans[name].label: sae for name, sae in trainer.saes.items()}


def random_rows(sae: Sae, seed: int) -> Sae:
    """A dictionary of the same shape that was never trained: W_enc and W_dec are the same random unit rows."""
    rows = torch.randn(sae.num_latents, sae.d_in, generator=torch.Generator().manual_seed(seed + 1))
    return _with_rows(sae, torch.nn.functional.normalize(rows, dim=1), sae.b_dec)


def true_rows(sae: Sae, feed: SyntheticFeed) -> Sae:
    """The features themselves as W_enc and W_dec: what an encoder that knows the directions, and no more, can do."""
    return _with_rows(sae, feed.features.directions, feed.features.mean)


@torch.no_grad()
def _with_rows(sae: Sae, rows: Tensor, centre: Tensor) -> Sae:
    """A dictionary of these rows with topk and the k of `sae`, or as many latents as there are."""
    cfg = SaeConfig(num_latents=len(rows), k=min(sae.cfg.k, len(rows)))
    other = Sae(sae.d_in, cfg, device=sae.device)
    other.W_dec.copy_(rows)
    other.encoder.weight.copy_(rows)
    other.b_dec.copy_(centre)
    return other
