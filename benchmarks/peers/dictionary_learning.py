"""dictionary-learning: its `trainSAE` with one of its trainers on given activations."""

import json
from pathlib import Path
from typing import Any

import torch
from dictionary_learning.trainers import BatchTopKTrainer, TopKTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.training import trainSAE

from benchmarks.harness.worker import WARMUP_STEPS, Batches, Job

TRAINERS: dict[str, Any] = {
    "topk": TopKTrainer,
    "batchtopk": BatchTopKTrainer,
    "matryoshka": MatryoshkaBatchTopKTrainer,
}
THRESHOLD_FROM = 0.8
"""Share of a run shorter than its default of 1000 steps after which the threshold is found, of kinds that have one."""


def train(job: Job, batches: Batches) -> None:
    """`trainSAE` takes activations from any iterator."""
    kind = job.options.get("kind", "topk")
    base = TRAINERS[kind]

    class Watched(base):
        """Tells where its autoencoder is."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            batches.reconstruct = self.ae
            batches.fired = lambda x: self.ae.encode(x) > 0
            batches.save = lambda folder: _save(self, folder)

    config: dict[str, Any] = {
        "trainer": Watched,
        "steps": job.steps + 1,
        "activation_dim": job.d_in,
        "dict_size": job.num_latents,
        "k": job.k,
        "layer": job.block if job.hookpoint else 0,
        "lm_name": "given activations",
        "submodule_name": job.hookpoint or None,
        "seed": job.seed,
        "device": job.device,
        "lr": job.lr or job.peak_lr,
    }
    if kind == "matryoshka":
        ends = [0, *job.options["prefixes"], job.num_latents]
        config["group_fractions"] = [(b - a) / job.num_latents for a, b in zip(ends, ends[1:], strict=False)]
    if job.lr is not None or job.steps < 20_000:  # the default, 1000, must be below the number of steps
        config["warmup_steps"] = WARMUP_STEPS if job.lr is not None else job.steps // 20
    if kind != "topk" and job.steps * THRESHOLD_FROM < 1000:  # else it would stay at -1: every latent fires
        config["threshold_start_step"] = int(job.steps * THRESHOLD_FROM)
    dtype = getattr(torch, job.options.get("autocast_dtype", "float32"))
    trainSAE(batches, [config], job.steps + 1, device=job.device, autocast_dtype=dtype)


def _save(trainer: Any, folder: Path) -> None:
    """The two files that `trainSAE` writes when its data end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"trainer": trainer.config}, indent=4))
    torch.save({name: tensor.cpu() for name, tensor in trainer.ae.state_dict().items()}, folder / "ae.pt")
