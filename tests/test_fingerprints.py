"""Whole tiny runs end with the weights that are on record, to the bit: a refactoring changes no result.

A change that is meant to alter results records new ones with `python tests/test_fingerprints.py`, and says so.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).with_name("support")))
from several import launcher
from tiny_models import VOCAB_SIZE, tiny_model
from torch.nn import functional as F

import sae.lm.load
import sae.ops.native as native
import sae.report.training
from sae import SaeConfig, SaeTrainer, TrainConfig
from sae.commands.cache import cache_activations
from sae.config import CacheConfig
from sae.data import ActivationCache

RECORD = Path(__file__).with_name("fingerprints.json")
"""By the arithmetic of a machine, the fingerprint of each run."""
SEQ = 8


def tokens() -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, (84, SEQ), generator=torch.Generator().manual_seed(1))


def run(folder: Path, *, k: int = 4, sae: Any = None, data: Any = None, model: Any = None, **changes: Any) -> Path:
    """Train every block of a tiny model; returns the last checkpoint."""
    options = {"batch_size": 4, "save_dir": str(folder), "log_to_wandb": False, "lr": 3e-3} | changes
    cfg = TrainConfig(sae or SaeConfig(num_latents=128, k=k), **options)
    data = tokens() if data is None else data
    if model is None and not isinstance(data, ActivationCache):
        model = tiny_model("gpt_neox", causal_lm=cfg.loss_fn != "fvu")
    return SaeTrainer(cfg, data, model).fit()


def massive(folder: Path) -> Path:
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.embed_in.weight[tokens()[0, 0]] *= 1000
    return run(folder, model=model)


def cached(folder: Path) -> Path:
    cfg = CacheConfig(batch_size=4, layers=[0, 2], dtype="float32", activations=str(folder / "cache"))
    return run(folder, data=ActivationCache(str(cache_activations(cfg, tokens(), tiny_model("gpt_neox")))))


def on_two_ranks(folder: Path, **changes: Any) -> Path:
    with launcher(folder) as processes:
        processes.succeed("train", 2, save_dir=str(folder), runs={"run": changes})
    return max(folder.glob("run/step_*"), key=lambda step: int(step.name[5:]))


RUNS: dict[str, Callable[[Path], Path]] = {
    "default": run,
    "gao2024": lambda folder: run(folder, recipe="gao2024"),
    "dead latents": lambda folder: run(folder, dead_feature_threshold=64, auxk_alpha=1.0),
    "growing k": lambda folder: run(folder, k=32),
    "massive tokens": massive,
    "cached": cached,
    "kl": lambda folder: run(folder, loss_fn="kl", reconstruct_first=0.0),
    "sweep": lambda folder: run(folder, sae=[SaeConfig(num_latents=n, k=4) for n in (96, 128)], micro_acc_steps=2),
    "2 ranks": on_two_ranks,
    "2 ranks, latents shared": lambda folder: on_two_ranks(folder, shard_latents=2),
}


def fingerprint(checkpoint: Path) -> str:
    """SHA-256 of all weights of a checkpoint."""
    found = hashlib.sha256()
    for path in sorted(checkpoint.rglob("sae.safetensors")):
        found.update(path.relative_to(checkpoint).as_posix().encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def arithmetic() -> str:
    """Hash of how this machine, its compiler and PyTorch round: processors differ in the order of their sums."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(37, 48, generator=generator) for _ in range(2))
    found = hashlib.sha256((torch.__version__ + native.version()).encode())
    low = (a.bfloat16() @ b.bfloat16().T).float()
    summed = F.embedding_bag(torch.arange(37).view(1, 37), a, mode="sum")
    for result in (a @ b.T, low, summed, a.sum(0), torch.linalg.vector_norm(a, dim=1), a.exp(), a.softmax(1)):
        found.update(result.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_with_the_weights_that_are_on_record(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sae.report.training, "draw_curves", lambda records, path: None)
    monkeypatch.setattr(sae.lm, "compute_dtype", sae.lm.load.compute_dtype)  # other tests replace it
    recorded = json.loads(RECORD.read_text() if RECORD.is_file() else "{}").get(arithmetic())
    if recorded is None:
        pytest.skip("no record for this machine's arithmetic; make one with `python tests/test_fingerprints.py`")
    assert fingerprint(RUNS[name](tmp_path)) == recorded[name]


def record() -> None:
    """Write the fingerprints of this machine; those of others stay."""
    torch.set_num_threads(1)
    sae.report.training.draw_curves = lambda records, path: None
    found = {}
    for name, train in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = fingerprint(train(Path(folder)))
    records = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    RECORD.write_text(json.dumps(records | {arithmetic(): found}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(record())
