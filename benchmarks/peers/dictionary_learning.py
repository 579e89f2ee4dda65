"""dictionary-learning: its `trainSAE` with its `TopKTrainer` on given activations."""

from typing import Any

import torch
from dictionary_learning.trainers import TopKTrainer
from dictionary_learning.training import trainSAE

from benchmarks.harness.worker import WARMUP_STEPS, Batches, Job


def train(job: Job, batches: Batches) -> None:
    """`trainSAE` takes activations from any iterator."""

    class Watched(TopKTrainer):
        """Tells where its autoencoder is."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            batches.reconstruct = self.ae
            batches.fired = lambda x: self.ae.encode(x) > 0

    config: dict[str, Any] = {
        "trainer": Watched,
        "steps": job.steps + 1,
        "activation_dim": job.d_in,
        "dict_size": job.num_latents,
        "k": job.k,
        "layer": 0,
        "lm_name": "given activations",
        "seed": job.seed,
        "device": job.device,
        "lr": job.lr or job.peak_lr,
    }
    if job.lr is not None or job.steps < 20_000:  # the default, 1000, must be below the number of steps
        config["warmup_steps"] = WARMUP_STEPS if job.lr is not None else job.steps // 20
    dtype = getattr(torch, job.options.get("autocast_dtype", "float32"))
    trainSAE(batches, [config], job.steps + 1, device=job.device, autocast_dtype=dtype)
