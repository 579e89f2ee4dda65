"""Two runs with the same result, but for rounding."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from whole_runs import without_speed

from sae.runs.log import read_records


def newest(run: Path) -> Path:
    return max(run.glob("step_*"), key=lambda path: int(path.name[5:]))


def assert_same_result(run: Path, other: Path) -> None:
    """Weights, state, position, metrics and evaluation are the same, but for rounding."""
    one, two = newest(run), newest(other)
    assert one.name == two.name and (run / "config.json").exists()
    positions = [json.loads((step / "trainer.json").read_text()) for step in (one, two)]
    for position in positions:
        position["source"].pop("index", None)  # of the permutation: where nothing is mixed, a block is what ranks read
    assert positions[0] == positions[1]
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(two) for path in two.rglob("*.safetensors")) != []
    for file in files:
        tensors, twins = load_file(one / file), load_file(two / file)
        assert tensors.keys() == twins.keys()
        for key, tensor in tensors.items():
            assert_close(tensor, twins[key], f"{file}: {key}")
    for record, twin in zip(records(run), records(other), strict=True):
        assert record == pytest.approx(twin, rel=2e-3)
    evaluations = [json.loads((path / "evaluation.json").read_text()) for path in (run, other)]
    assert list(evaluations[0]) == list(evaluations[1])
    for name, metrics in evaluations[0].items():
        assert metrics == pytest.approx(evaluations[1][name], rel=2e-3)


def assert_close(tensor: torch.Tensor, twin: torch.Tensor, what: str) -> None:
    assert tensor.dtype == twin.dtype and tensor.shape == twin.shape, what
    if "tokens" in what:
        assert torch.equal(tensor, twin), what
    else:
        difference = (tensor - twin).double().norm() / twin.double().norm().clamp_min(1e-12)
        assert difference < (1e-3 if "exp_avg" in what else 2e-4), f"{what}: {difference}"


def records(run: Path) -> list[dict[str, float]]:
    return [without_speed(record) for record in read_records(run / "metrics.jsonl")]
