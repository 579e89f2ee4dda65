"""The benchmark itself works: its quick mode runs, its statistics are right, and a contestant can lose."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick mode's JSON file and what it printed."""
    path = tmp_path_factory.mktemp("benchmark") / "quick.json"
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--out", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


def test_quick_mode_measures_every_section_on_toy_sizes(quick):
    report, _ = quick
    assert {row["section"] for row in report["rows"]} == {"step", "stage", "quality", "end to end"}
    for row in report["rows"]:
        assert not row["note"].startswith("not measured"), row
        numbers = row["fvu"] if row["section"] == "quality" else row["seconds"]
        assert 0 < numbers["min"] <= numbers["median"] <= numbers["max"], row
        assert row["section"] == "quality" or 2 <= len(row["turns"]) == len(row["other_cores"]) <= 4


def test_the_file_says_on_what_and_with_which_versions_it_was_measured_and_names_nobody(quick):
    report, _ = quick
    assert report["schema"] == 1
    assert {"cpu", "cores", "threads", "device"} <= report["machine"].keys()
    assert {"sae", "torch", "transformers"} == report["versions"]["sae"].keys()
    assert "load_average" in report["settings"]["load_before"]
    text = json.dumps(report)
    assert str(Path.home()) not in text and str(ROOT) not in text


def test_what_was_not_measured_is_printed_as_such(quick):
    _, printed = quick
    lines = printed[printed.index("### Goals") :].splitlines()[4:]
    assert len(lines) == 12 and all(line.endswith("| not measured |") for line in lines)


def test_turns_are_interleaved_one_contestant_at_a_time():
    from benchmarks.harness.measure import Turn, interleave

    order = []
    contestants = {name: (lambda name=name: order.append(name) or Turn(float(len(order)), 0.0)) for name in "abc"}
    turns = interleave(contestants, 2)
    assert order == list("abcabc")
    assert [turn.seconds for turn in turns["b"]] == [2.0, 5.0]


def test_a_round_that_others_disturbed_is_repeated_and_left_out_if_there_are_enough_quiet_ones():
    from benchmarks.harness.measure import Turn, interleave

    loads = iter([0.5, 0.0, 0.9, 0.0])
    turns = interleave({"a": lambda: Turn(1.0, next(loads))}, 2)
    assert [turn.other_cores for turn in turns["a"]] == [0.0, 0.0]
    turns = interleave({"a": lambda: Turn(1.0, 0.5)}, 2)
    assert len(turns["a"]) == 4


def test_a_summary_is_the_median_with_both_ends():
    from benchmarks.harness.measure import Summary

    assert Summary.of([5.0, 1.0, 2.0]) == Summary(median=2.0, min=1.0, max=5.0, repeats=3)
    with pytest.raises(ValueError, match="at least one value"):
        Summary.of([])


def test_timing_leaves_out_what_prepares_a_call():
    import time

    from benchmarks.harness.measure import timed

    turn = timed(lambda: time.sleep(0.001), 0.005, prepare=lambda: time.sleep(0.02))
    assert 0.001 <= turn.seconds < 0.015


def test_what_does_not_fit_into_memory_is_left_out_with_its_reason():
    from benchmarks.harness.shapes import ADAM, OURS, SHAPES
    from benchmarks.speed.steps import plan

    groups, reasons = plan([OURS, ADAM], SHAPES["a"], 1024, 100 * 10**9, "cpu")
    assert groups == [[OURS, ADAM]] and not reasons
    groups, reasons = plan([OURS, ADAM], SHAPES["b"], 1024, 25 * 10**9, "cpu")
    assert groups == [[OURS]] and "needs about" in reasons[ADAM.name]
    groups, reasons = plan([OURS, ADAM], SHAPES["b"], 1024, 40 * 10**9, "cpu")  # neither beside the other
    assert groups == [[OURS], [ADAM]] and not reasons
    groups, reasons = plan([OURS, ADAM], SHAPES["b"], 1024, 10**9, "cpu")
    assert not groups and set(reasons) == {OURS.name, ADAM.name}


def test_synthetic_activations_have_outlier_dimensions_and_a_few_popular_directions():
    from benchmarks.harness.inputs import OUTLIER_DIMS, synthetic

    x = synthetic(48, 2000)
    means = x.mean(0).abs()
    assert (means > 10 * x.std(0).median()).sum() == OUTLIER_DIMS
    values = (x - x.mean(0)).svd().S.square()
    assert values[:5].sum() > 0.25 * values.sum()
    assert x.equal(synthetic(48, 2000))


def test_a_peer_that_cannot_be_installed_is_a_row_with_the_reason_and_stops_nobody(monkeypatch):
    from benchmarks.harness import machine
    from benchmarks.harness.pool import warm_workers
    from benchmarks.harness.worker import Job
    from benchmarks.peers import environments

    def fail(library):
        raise environments.PeerError("no such package")

    monkeypatch.setattr(environments, "python_of", fail)
    with warm_workers({"peer": Job("sparsify")}, 0.01) as (alive, failed):
        assert not alive
        assert failed == {"peer": "not measured: no such package"}
    assert machine.versions(["sparsify"])["sparsify"] == {"not installed:": "no such package"}


def test_every_package_of_a_peers_environment_has_a_version() -> None:
    """So that pip resolves nothing, and the next environment is the same. torch comes from the one that runs."""
    from benchmarks.peers.environments import PEERS, pins

    for library, peer in PEERS.items():
        listed = dict(line.split("==") for line in pins(library).read_text().splitlines())
        assert peer.package in listed and not {"torch", "torchvision", "triton"} & set(listed), library
        fixed = dict(each.split("==") for each in (*peer.requirements, *peer.without_dependencies) if "==" in each)
        assert fixed.items() <= listed.items(), library


def test_the_engine_takes_the_trainers_own_steps_and_nothing_else(monkeypatch, tmp_path):
    """What the step table times is what `SaeTrainer.fit` runs: every gradient and update is one of `train_step`."""
    import numpy as np

    from benchmarks.harness.worker import Job
    from benchmarks.peers import sae as engine
    from sae.training.learner import SaeLearner
    from sae.training.trainer import SaeTrainer

    inside, steps, calls = [False], [], []
    own_step, accumulate, update = SaeTrainer.train_step, SaeLearner.accumulate, SaeLearner.update

    def step(self):
        inside[0] = True
        steps.append(self.step)
        done, inside[0] = own_step(self), False
        return done

    monkeypatch.setattr(SaeTrainer, "train_step", step)
    monkeypatch.setattr(SaeLearner, "accumulate", lambda *a: calls.append(inside[0]) or accumulate(*a))
    monkeypatch.setattr(SaeLearner, "update", lambda *a: calls.append(inside[0]) or update(*a))

    rows = np.random.default_rng(0).standard_normal((256, 16)).astype(np.float32)

    class Five:
        def take_over(self):
            return torch.from_numpy(rows)

        def __iter__(self):
            return iter(range(5))

    job = Job("sae", d_in=16, num_latents=64, k=4, tokens=32, activations="given")
    engine.train(job, Five())
    assert steps == [job.steps // 2 + i for i in range(5)] and calls == [True] * 10
    trainer = engine.given_trainer(job, torch.from_numpy(rows), str(tmp_path))
    assert trainer.cfg.recipe == "default" and trainer.cfg.auxk_alpha == type(trainer.cfg)().auxk_alpha
    assert not any(tmp_path.iterdir())
