"""`sae selftest`: train on synthetic activations of known features, and say how many of them are found."""

import tempfile
from dataclasses import replace

import torch

from sae import lm
from sae.activations.synthetic import SyntheticStore
from sae.config import SelftestConfig
from sae.dictionary.autoencoder import Sae
from sae.evaluation.baselines import with_rows
from sae.evaluation.recovery import Recoveries, recovery
from sae.parallel.world import check_alone
from sae.report.selftest import report_selftest
from sae.runs.log import Progress
from sae.storage.files import check_writable, without_dots
from sae.training.trainer import SaeTrainer


def selftest(cfg: SelftestConfig) -> int:
    """Train, compare with the features, report."""
    check_alone("sae selftest")
    if cfg.out is not None:
        path = without_dots(cfg.out)
        if path.exists():
            raise ValueError(f"out must be a new file, got {cfg.out}; choose another --out")
        check_writable("out", path)
    device = lm.check_device(cfg.device)
    report_selftest(recoveries(cfg, device), cfg)
    return 0


def recoveries(cfg: SelftestConfig, device: torch.device) -> dict[str, Recoveries]:
    """Recovery of the features by each combination of options, by its label, with the references."""
    store = SyntheticStore(cfg, device)
    saes = train_on(cfg, store)
    sample, directions = store.held_out_sample(), store.features.directions
    return {
        label: Recoveries(
            *(
                recovery(one, directions, *sample)
                for one in (sae, random_rows(sae, cfg.data_seed), true_rows(sae, store))
            )
        )
        for label, sae in saes.items()
    }


def train_on(cfg: SelftestConfig, store: SyntheticStore) -> dict[str, Sae]:
    """The dictionaries, by label, trained by the product's own trainer. Nothing is written."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = SaeTrainer(replace(cfg, save_dir=folder), store)
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
    return with_rows(torch.nn.functional.normalize(rows, dim=1), sae.b_dec.detach(), _whole_l0(sae))


def true_rows(sae: Sae, store: SyntheticStore) -> Sae:
    """The features themselves as W_enc and W_dec: what an encoder that knows the directions, and no more, can do."""
    return with_rows(store.features.directions, store.features.mean.to(sae.device), _whole_l0(sae))


def _whole_l0(sae: Sae) -> int:
    """Latents that a token keeps at inference, rounded."""
    return max(1, round(sae.cfg.l0))
