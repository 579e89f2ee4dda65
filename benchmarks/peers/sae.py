"""This library: `SaeTrainer` and its own step, on given activations or on a language model."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.given import HOOKPOINT, GivenStore
from benchmarks.harness.worker import Batches, Job, read_rows
from sae import lm
from sae.config import SaeConfig, TrainConfig
from sae.dictionary.autoencoder import Sae
from sae.training.trainer import SaeTrainer


class GivenRate(SaeTrainer):
    """The trainer at the learning rate of a job, for comparisons at one rate for everybody."""

    job: Job

    def learning_rate(self, name: str) -> float:
        return self.job.learning_rate(self.step)


def train(job: Job, batches: Batches) -> None:
    """`SaeTrainer.initialise`, then its training steps and metrics, as its `fit` runs them, with the default recipe.

    What is only timed is a step in the middle of a long run. Else `--steps_per_batch` has its default, but for
    comparisons at one learning rate for all.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = given_trainer(job, batches.take_over(), folder)
        sae = trainer.saes[HOOKPOINT]
        batches.reconstruct = lambda x: sae(x).recon
        batches.fired = lambda x: _fired(sae, x)
        batches.save = lambda folder: _save(trainer, folder)
        for _ in batches:
            for _ in range(trainer.steps_per_batch):
                _step(trainer)


def given_trainer(job: Job, rows: torch.Tensor, folder: str) -> SaeTrainer:
    """A trainer on these rows (tokens, d_in) that has looked at its data; `folder` stays empty."""
    _set_up_as_the_command_does()
    if job.options.get("float32"):
        lm.compute_dtype = lambda device: torch.float32  # type: ignore[assignment]  # no option of the library
    cfg = TrainConfig(
        sae=SaeConfig(
            num_latents=job.num_latents,
            k=job.k,
            selection=job.options.get("selection", "topk"),
            prefixes=list(job.options.get("prefixes", ())),
        ),
        batch_size=1,
        steps_per_batch=None if job.lr is None else 1,
        lr=job.peak_lr,
        encode_in_8bit=job.options.get("encode_in_8bit"),
        recipe=job.options.get("recipe", "default"),
        seed=job.seed,
        save_dir=folder,
        log_to_wandb=False,
    )
    held_out = None
    if job.calibrate_on and job.activations is not None:
        held_out = read_rows(job.activations, job.d_in)[: job.calibrate_on]
    store = GivenStore(rows, job.tokens, job.steps, torch.device(job.device), held_out)
    trainer = SaeTrainer(cfg, store) if job.lr is None else GivenRate(cfg, store)
    if isinstance(trainer, GivenRate):
        trainer.job = job
    if "least_firings" in job.options:  # no option of the library
        for learner in trainer.learners.values():
            learner._recipe = learner._recipe._replace(least_firings=job.options["least_firings"])
    trainer.initialise()
    if job.is_timed:
        trainer.step = trainer.total_steps // 2  # when k has grown, as in most of a run
    return trainer


def _save(trainer: SaeTrainer, folder: Path) -> None:
    """As `fit` ends: thresholds are calibrated on held-out tokens."""
    trainer.calibrate()
    trainer.saes[HOOKPOINT].save_to_disk(folder)


def _step(trainer: SaeTrainer) -> None:
    if not trainer.train_step():
        raise RuntimeError("the data are used up")
    trainer.metrics(tokens_per_second=0.0)


def _set_up_as_the_command_does() -> None:
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `sae.__main__.main`, before the first large tensor


def _fired(sae: Sae, x: torch.Tensor) -> torch.Tensor:
    acts, indices = sae.encode(x)
    return torch.zeros(len(x), sae.num_latents, dtype=torch.bool, device=x.device).scatter_(1, indices, acts > 0)


def train_on_model(job: Job, batches: Batches) -> None:
    """The same on a language model."""
    from benchmarks.harness.language_models import load

    _set_up_as_the_command_does()
    device = torch.device(job.device)
    model = load(job.options["model"], device, lm.compute_dtype(device))
    with tempfile.TemporaryDirectory() as folder:
        cfg = TrainConfig(
            sae=SaeConfig(expansion_factor=job.options["expansion_factor"], k=job.k),
            batch_size=job.options["batch_size"],
            layers=job.options["layers"],
            compile_lm=job.options.get("compile_lm", False),
            steps_per_batch=1,  # as in a long run
            save_dir=folder,
            log_to_wandb=False,
        )
        trainer = SaeTrainer(cfg, torch.from_numpy(np.load(job.options["tokens"])), model)
        trainer.initialise()
        trainer.step = trainer.total_steps // 2  # when k has grown, as in most of a run
        for _ in batches:
            _step(trainer)
