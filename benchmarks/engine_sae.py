"""This library: `SaeLearner` on given activations, `SaeTrainer` on a language model."""

import os
import tempfile

import numpy as np
import torch
from worker import Batches, Job

from sae import lm
from sae.autoencoder import Sae
from sae.config import SaeConfig, TrainConfig
from sae.data.shuffle import STEPS
from sae.learner import SaeLearner
from sae.optim import Recipe, firings, peak_lr, schedule, steps_per_batch, warmup_steps
from sae.trainer import dead_threshold


def train(job: Job, batches: Batches) -> None:
    """What `SaeTrainer.train_step` does for one autoencoder, and the metrics that it reads at every step.

    What is only timed is a step of a long run: with all tokens and all k. Else `--steps_per_batch` has its default, but
    for comparisons at one learning rate for all.
    """
    timed = job.steps == Job.steps
    parts = 1 if timed or job.lr is not None else steps_per_batch(job.steps, job.tokens)
    steps, tokens = job.steps * parts, job.tokens // parts
    _set_up_as_the_command_does()
    device = torch.device(job.device)
    cfg = SaeConfig(num_latents=job.num_latents, k=job.k)
    sae = Sae(job.d_in, cfg, device=device, generator=torch.Generator().manual_seed(job.seed))
    defaults = TrainConfig()
    learner = SaeLearner(
        sae,
        tokens_per_step=tokens,
        auxk_alpha=defaults.auxk_alpha,
        dead_feature_threshold=dead_threshold(defaults, steps * tokens),
        recipe=Recipe.named("default", steps, firings(tokens, job.k, job.num_latents)),
        compute_dtype=torch.float32 if job.options.get("float32") else lm.compute_dtype(device),
        encode_in_8bit=job.options.get("encode_in_8bit"),
        tokens_per_pass=tokens,
    )
    batches.reconstruct = lambda x: sae(x).recon
    batches.fired = lambda x: _fired(sae, x)
    for batch, x in enumerate(batches):
        if batch == 0:
            learner.initialise(batches.first(STEPS))  # a block of the shuffle, as in `SaeTrainer.initialise`
        for step, part in enumerate(x.tensor_split(parts), start=batch * parts):
            if not timed:
                learner.begin_step(step, steps)
            learner.accumulate(part)
            learner.update(_learning_rate(job, step, steps, tokens))
            learner.read_metrics()


def _set_up_as_the_command_does() -> None:
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `sae.__main__.main`, before the first large tensor


def _learning_rate(job: Job, step: int, steps: int, tokens: int) -> float:
    if job.lr is not None:
        return job.learning_rate(step)
    peak = job.peak_lr or peak_lr(job.num_latents, steps, firings(tokens, job.k, job.num_latents))
    return peak * schedule(step, steps, warmup_steps(steps, None))


def _fired(sae: Sae, x: torch.Tensor) -> torch.Tensor:
    acts, indices = sae.encode(x)
    return torch.zeros(len(x), sae.num_latents, dtype=torch.bool, device=x.device).scatter_(1, indices, acts > 0)


def train_on_model(job: Job, batches: Batches) -> None:
    """`SaeTrainer.initialise`, then its training steps and metrics, as its `fit` runs them."""
    from language_models import load

    from sae.trainer import SaeTrainer

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
            if not trainer.train_step():
                raise RuntimeError("the tokens are used up")
            trainer.metrics(tokens_per_second=0.0)
