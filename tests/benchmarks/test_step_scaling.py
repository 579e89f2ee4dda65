"""The benchmark of how a step grows, at toy sizes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scaling import machines
from benchmarks.scaling.model import Machine, Size, exponent, memory_bytes, step_seconds


def test_the_exponent_of_a_power_law_is_its_power() -> None:
    sizes = [1.0, 2.0, 8.0, 32.0]
    assert exponent(sizes, [3 * size**0.7 for size in sizes]) == pytest.approx(0.7)
    assert exponent(sizes, [5.0] * 4) == pytest.approx(0)


def test_the_model_grows_with_the_work() -> None:
    core = Machine(1e12, 1e10)
    one, wide = Size(), Size(latents=2 * Size().latents)
    assert 1 < step_seconds(wide, core) / step_seconds(one, core) < 2
    assert step_seconds(Size(hookpoints=3), core) == pytest.approx(3 * step_seconds(one, core))
    # docs/scaling.md: 16 M D for each autoencoder of one process, 24 of several, and 2 M (D + min(128, D / 4)) once
    for processes, each in {1: 16, 2: 24}.items():
        grown = memory_bytes(replace(wide, processes=processes)) - memory_bytes(replace(one, processes=processes))
        assert grown == (each * 128 + 2 * (128 + 32)) * one.latents


@pytest.mark.slow
def test_the_parts_work_at_toy_sizes(tmp_path: Path) -> None:
    out, plot = tmp_path / "found.json", tmp_path / "plot.png"
    command = [sys.executable, "-m", "benchmarks.scaling", "--quick", "--out", str(out), "--plot", str(plot)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 2 + 3 and plot.stat().st_size > 10_000
    axes = json.loads(out.read_text())["axes"]
    assert {axis: len(found["points"]) for axis, found in axes.items()} == {"latents": 2, "k": 2, "processes": 2}
    assert all(point["seconds"] > 0 for found in axes.values() for point in found["points"])
    assert axes["processes"]["points"][1]["sent_bytes"]["replicas"] > 0
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout  # nothing is measured twice


@pytest.mark.slow
def test_two_machines_of_eight_processes_send_what_the_page_says(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.scaling.machines", "--steps", "16", "--out", str(out)]
    subprocess.run(command, capture_output=True, check=True)
    modes = json.loads(out.read_text())["modes"]
    assert list(modes) == list(machines.MODES)
    for found in modes.values():  # sixteen steps: two whole blocks of the shuffle
        assert found["excess"] == 0 and found["by_kind"].keys() == found["formula_by_kind"].keys()
