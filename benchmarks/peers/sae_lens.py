"""sae-lens: its `SAETrainer.fit` on given activations, with one of its training SAEs."""

from pathlib import Path
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.training.sae_trainer import SAETrainer

from benchmarks.harness.worker import WARMUP_STEPS, Batches, Job

DEFAULT_LR = 3e-4
KINDS: dict[str, tuple[Any, Any]] = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "matryoshka": (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig),
}


def train(job: Job, batches: Batches) -> None:
    """`fit` takes activations from any iterator; the settings are arguments of the library's own."""
    of_training, config = KINDS[job.options.get("kind", "topk")]
    widths = {"matryoshka_widths": [*job.options["prefixes"], job.num_latents]} if "prefixes" in job.options else {}
    sae = of_training(
        config(
            d_in=job.d_in,
            d_sae=job.num_latents,
            k=job.k,
            device=job.device,
            use_sparse_activations=job.options.get("use_sparse_activations", False),
            rescale_acts_by_decoder_norm=job.options.get("rescale_acts_by_decoder_norm", True),
            **widths,
        )
    )
    if job.options.get("compile_sae"):  # as its LanguageModelSAETrainingRunner does
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)
    lr = job.lr or job.peak_lr or DEFAULT_LR
    cfg = SAETrainerConfig(
        total_training_samples=(job.steps + 1) * job.tokens,
        train_batch_size_samples=job.tokens,
        lr=lr,
        lr_end=lr / 10,
        lr_warm_up_steps=WARMUP_STEPS if job.lr is not None else 0,
        device=job.device,
        autocast=job.options.get("autocast", False),
    )
    batches.reconstruct = sae
    batches.fired = lambda x: sae.encode(x) > 0
    batches.save = lambda folder: _save(sae, job, batches, folder)
    SAETrainer(cfg, sae, batches).fit()


def _save(sae: Any, job: Job, batches: Batches, folder: Path) -> None:
    """The files of inference, in which a threshold stands for a selection in a batch."""
    sae.cfg.metadata.hook_name = f"blocks.{job.block}.hook_resid_post"
    sae.save_inference_model(folder)
    saved = SAE.load_from_disk(folder, device=job.device)
    batches.reconstruct = saved
    batches.fired = lambda x: saved.encode(x) > 0
