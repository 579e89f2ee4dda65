"""eai-sparsify: its `Trainer.fit` on given activations, or on a language model."""

import os
import tempfile
from typing import Any

import numpy as np
import torch
from sparsify import SaeConfig, TrainConfig, Trainer
from torch import Tensor, nn

from benchmarks.harness.worker import WARMUP_STEPS, Batches, Job


class GivenActivations(nn.Module):
    """A "language model" of one block, which returns the activations that it was given: costs nothing."""

    def __init__(self, d_in: int, device: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity()])
        self.config = type("Config", (), {"num_hidden_layers": 1})()
        self.device = torch.device(device)
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
        self.activations = torch.zeros(1, 1, d_in, device=device)

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.layers[0](self.activations)


class BatchedRows:
    """A data set that asks `batches` whenever the trainer asks for the first row of a batch."""

    def __init__(self, batches: Batches, batch_size: int, length: int) -> None:
        self._batches, self._batch_size, self._length = batches, batch_size, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = next(self._batches) if index % self._batch_size == 0 else None
        return {"input_ids": self.row(index, batch)}

    def row(self, index: int, batch: Any) -> Tensor:
        raise NotImplementedError


class ActivationRows(BatchedRows):
    """One row per step; its token ids only say how many tokens there are."""

    def __init__(self, batches: Batches, model: GivenActivations, job: Job) -> None:
        super().__init__(batches, 1, job.steps + 1)  # the last row is asked for, and never trained on
        self._model, self._ids = model, torch.zeros(job.tokens, dtype=torch.long)

    def row(self, index: int, batch: Tensor) -> Tensor:
        self._model.activations = batch.unsqueeze(0)
        return self._ids


class TokenRows(BatchedRows):
    """Rows of token ids, over and over."""

    def __init__(self, batches: Batches, rows: np.ndarray, batch_size: int) -> None:
        super().__init__(batches, batch_size, 10**6 * batch_size)
        self._rows = rows

    def row(self, index: int, batch: None) -> Tensor:
        return torch.from_numpy(self._rows[index % len(self._rows)])


class UnsavedTrainer(Trainer):
    """Their trainer, which saves once at the end of `fit`; the benchmark stops it before."""

    def save(self) -> None:
        pass


def train(job: Job, batches: Batches) -> None:
    """`Trainer.fit` with the losses and optimizer of the setting."""
    if job.options.get("huge_pages"):
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # read by PyTorch at the first large tensor, which comes below
    model = GivenActivations(job.d_in, job.device)
    cfg = _config(job, SaeConfig(num_latents=job.num_latents, k=job.k), batch_size=1)
    trainer = UnsavedTrainer(cfg, ActivationRows(batches, model, job), model)
    if job.options.get("autocast"):
        _autocast_forward(trainer)
    batches.reconstruct = _averaged(trainer, lambda sae, x: sae(x).sae_out)
    batches.fired = _averaged(trainer, _fired)
    batches.save = _averaged(trainer, lambda sae, folder: sae.save_to_disk(folder))
    trainer.fit()


def train_on_model(job: Job, batches: Batches) -> None:
    """`Trainer.fit` on a language model in the dtype that ours gets."""
    from benchmarks.harness.language_models import load

    device = torch.device(job.device)
    model = load(job.options["model"], device, getattr(torch, job.options["model_dtype"]))
    sae = SaeConfig(expansion_factor=job.options["expansion_factor"], k=job.k)
    cfg = _config(job, sae, batch_size=job.options["batch_size"], layers=job.options["layers"])
    rows = TokenRows(batches, np.load(job.options["tokens"]), job.options["batch_size"])
    UnsavedTrainer(cfg, rows, model).fit()


def _config(job: Job, sae: SaeConfig, **options: Any) -> TrainConfig:
    options |= {"optimizer": job.options["optimizer"], "log_to_wandb": False, "init_seeds": [job.seed]}
    if job.peak_lr is not None:
        options |= {"lr": job.peak_lr}
    if job.lr is not None:
        options |= {"lr": job.lr, "lr_warmup_steps": WARMUP_STEPS}
    elif job.steps < 20_000:
        options |= {"lr_warmup_steps": job.steps // 20}
    return TrainConfig(sae, save_dir=tempfile.gettempdir(), save_every=10**9, **options)


def _autocast_forward(trainer: Trainer) -> None:
    """Not offered by the library: its own autocast of the forward is for CUDA only."""
    for sae in trainer.saes.values():
        sae.forward = torch.autocast("cpu", dtype=torch.bfloat16)(sae.forward)


def _fired(sae: Any, x: Tensor) -> Tensor:
    code = sae.encode(x)
    fired = torch.zeros(len(x), sae.num_latents, dtype=torch.bool, device=x.device)
    return fired.scatter_(1, code.top_indices, code.top_acts > 0)


def _averaged(trainer: Trainer, work: Any) -> Any:
    """Do `work` with the weights that it would save: the schedule-free optimizer keeps two sets."""

    def averaged(x: Any) -> Any:
        schedule_free = [optimizer for optimizer in trainer.optimizers if hasattr(optimizer, "eval")]
        for optimizer in schedule_free:
            optimizer.eval()
        (sae,) = trainer.saes.values()
        out = work(sae, x)
        for optimizer in schedule_free:
            optimizer.train()
        return out

    return averaged
