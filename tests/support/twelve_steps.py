"""A run of twelve steps, to be stopped, killed or damaged, and its end."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_models import VOCAB_SIZE, tiny_model
from whole_runs import without_speed

from sae import SaeConfig, SaeTrainer, TrainConfig
from sae.runs.log import read_records

STEPS = 12


def make_trainer(save_dir: Path | str, **changes: Any) -> SaeTrainer:
    """Twelve steps of 4 sequences on two layers, always of the same weights, tokens and name."""
    tokens = torch.randint(3, VOCAB_SIZE, (4 * STEPS + 4, 16), generator=torch.Generator().manual_seed(5))
    options: dict[str, Any] = {"batch_size": 2, "grad_acc_steps": 2, "lr": 3e-3, "layers": [0, 2], "run_name": "run",
                               "log_to_wandb": False, "dead_feature_threshold": 200}  # fmt: skip
    given = {field.name: changes.pop(field.name) for field in fields(SaeConfig) if field.name in changes}
    if "hookpoints" in changes:
        del options["layers"]
    shape = SaeConfig(**{"num_latents": 64, "k": 4} | given)
    cfg = TrainConfig(shape, save_dir=str(save_dir), **options | changes)
    return SaeTrainer(cfg, tokens, tiny_model("gpt_neox"))


def final_state(save_dir: Path) -> dict[str, torch.Tensor]:
    folder = max((save_dir / "run").glob("step_*"), key=lambda path: int(path.name[5:]))
    assert folder.name == f"step_{STEPS}"
    paths = sorted(folder.rglob("*.safetensors"))
    return {f"{path.relative_to(folder)}/{key}": t for path in paths for key, t in load_file(path).items()}


def records(save_dir: Path) -> list[dict[str, float]]:
    """What was logged, but for the speed."""
    return [without_speed(r) for r in read_records(save_dir / "run" / "metrics.jsonl")]


def assert_same_end(stopped: Path, straight: Path) -> None:
    expected = final_state(straight)
    found = final_state(stopped)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert records(stopped) == records(straight)
