"""Whole runs of a tiny model: the tokens that they read, what they write, and how to stop one."""

import json
from pathlib import Path

import torch
from tiny_models import VOCAB_SIZE
from torch import Tensor

from sae import SaeTrainer
from sae.runs.log import read_records

SEQ = 8


def make_tokens(count: int = 44, seq: int = SEQ) -> Tensor:
    """Different sequences; the first token of each is its number, so that it can be recognised."""
    tokens = torch.randint(100, VOCAB_SIZE, (count, seq), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = torch.arange(count)
    return tokens


def weights(folder: Path) -> dict[str, bytes]:
    """Every file with weights or state of a checkpoint, to the bit."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def without_speed(record: dict[str, float]) -> dict[str, float]:
    """A record of metrics.jsonl but for the speeds, which differ from run to run."""
    return {name: value for name, value in record.items() if not name.endswith("tokens_per_second")}


def weights_only(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in weights(folder).items() if name.endswith("sae.safetensors")}


def losses(run: Path) -> list[dict[str, float]]:
    """The records of a run without its speed."""
    return [without_speed(record) for record in read_records(run)]


def evaluation(run: Path) -> dict[str, dict[str, float]]:
    return json.loads((run / "evaluation.json").read_text())


def stop_after(trainer: SaeTrainer, step: int) -> None:
    """Train until `step` as if a signal had come then."""
    train_step = trainer.train_step

    def counted() -> bool:
        went_on = train_step()
        if trainer.step == step:
            trainer.stop._requested = True
        return went_on

    trainer.train_step = counted  # type: ignore[method-assign]
    trainer.fit()


def save_after(trainer: SaeTrainer, steps: int) -> None:
    """Train some steps and leave a checkpoint, as a run that ended between two of its own."""
    trainer.initialise()
    for _ in range(steps):
        trainer.train_step()
    trainer.folder.claim(trainer.cfg, trainer.describe())
    trainer.save()
