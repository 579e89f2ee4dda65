"""The comparison of the family beside its peers measures what it says: at inference, at equal L0, by its probes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

CELL = ("english", 9, 64, 4, 320, 32)


def family_row(library: str, multiple: float, seed: int, validation: float, test: float) -> dict[str, Any]:
    """A row of `quality/members.py`, whose FVU at inference is a tenth lower: its L0 is larger."""
    names = ("text", "layer", "num_latents", "k", "tokens", "batch")
    row = dict(zip(names, CELL, strict=True)) | {"library": library, "multiple": multiple, "seed": seed}
    at_k = {"validation": {"fvu": validation}, "test": {"fvu": test, "unused": 0.25, "l0": 4.0}}
    return row | {"test": {"fvu": test * 0.9, "unused": 0.0, "l0": 5.0}, "at_k": at_k}


def some_rows() -> list[dict[str, Any]]:
    """Rows of one member of ours and two of a peer."""
    return [
        family_row("sae topk", 1.0, 0, 0.2, 0.21),
        family_row("sae topk", 1.0, 1, 0.1, 0.11),  # another seed decides nothing
        family_row("sae_lens batchtopk", 3.0, 0, 0.5, 0.30),
        family_row("sae_lens batchtopk", 10.0, 0, 0.4, 0.40),
        family_row("sae_lens batchtopk", 20.0, 0, 0.1, 0.10) | {"tokens": 640},
    ]


@pytest.mark.slow
def test_a_saved_dictionary_measures_as_the_run_did_and_its_threshold_was_calibrated(tmp_path: Path) -> None:
    from benchmarks.harness.pool import Worker
    from benchmarks.harness.worker import Job, read_rows
    from benchmarks.quality.members import measured
    from sae import Sae

    torch.manual_seed(0)
    x = (torch.randn(512, 32) * torch.linspace(0.1, 3, 32) + 2).bfloat16()
    path = tmp_path / "x.bf16"
    path.write_bytes(x.view(torch.int16).numpy().tobytes())
    options = {"selection": "batchtopk", "prefixes": [16]}
    job = Job("sae", options, d_in=32, num_latents=64, k=4, tokens=64, activations=str(path), first_row=256, steps=8)
    job.calibrate_on, job.hookpoint, job.fast_products = 128, "layers.3", True
    with Worker(job) as worker:
        worker.train(job.steps)
        worker.save(tmp_path / "layers.3")
        before, other = worker.measure(0, 128), worker.measure(128, 256)
    sae = Sae.load_from_disk(tmp_path / "layers.3")
    assert job.block == 3 and sae.cfg.prefixes == [16] and sae.threshold is not None
    assert before["l0"] == pytest.approx(4, rel=0.02) and other["l0"] == pytest.approx(4, rel=0.3)
    for found, rows in ((before, slice(0, 128)), (other, slice(128, 256))):
        assert measured(sae, read_rows(str(path), 32)[rows].float()) == pytest.approx(found, rel=1e-4)


def test_a_threshold_is_moved_until_k_latents_fire_in_the_mean() -> None:
    from benchmarks.quality.members import measured, with_l0
    from sae import Sae, SaeConfig

    torch.manual_seed(0)
    x = torch.randn(400, 16)
    sae = Sae(16, SaeConfig(num_latents=64, k=5, selection="batchtopk"))
    assert measured(sae, x)["l0"] > 10  # its threshold is 0
    assert measured(with_l0(sae, x, 5), x)["l0"] == pytest.approx(5, rel=0.02)
    plain = Sae(16, SaeConfig(num_latents=64, k=5))
    assert measured(with_l0(plain, x, 3), x)["l0"] == pytest.approx(5)  # topk has none


def test_the_measure_is_that_of_its_definition() -> None:
    from benchmarks.quality.members import measured
    from sae import Sae, SaeConfig

    sae = Sae(8, SaeConfig(num_latents=8, k=1))
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.eye(8))
        sae.W_dec.copy_(torch.eye(8))
    x = F.one_hot(torch.tensor([0, 1, 1, 2])).float()
    x = F.pad(x, (0, 5))
    x[3, 0] = 0.5  # what is left of the last token
    error, variance = 0.25, (x - x.mean(0)).square().sum().item()
    assert measured(sae, x) == pytest.approx({"fvu": error / variance, "unused": 5 / 8, "l0": 1.0})


def test_the_best_rate_is_chosen_at_equal_l0_on_validation_tokens() -> None:
    from benchmarks.harness.shapes import Cell
    from benchmarks.quality.members import best_of, cells_of, table

    rows = some_rows()
    cell = Cell(*CELL)
    assert cells_of(rows)[0] == cell and len(cells_of(rows)) == 2
    assert {name: row["multiple"] for name, row in best_of(rows, cell).items()} == {
        "sae topk": 1.0,
        "sae_lens batchtopk": 10.0,
    }
    lines = list(table(rows, cell))
    assert lines[2] == "| sae topk | × 1 | 5.00 | 0.1890 | 0.2100 | 25.0% |"
    assert lines[3] == "| sae_lens batchtopk | × 10 of 3, 10 | 5.00 | 0.3600 | 0.4000 | 25.0% |"


def test_a_run_that_failed_is_no_member_and_every_dictionary_has_a_folder_of_its_own() -> None:
    from benchmarks.harness.shapes import Cell
    from benchmarks.quality.members import best_of, folder_of

    rows = some_rows()
    failed = {name: value for name, value in rows[2].items() if name not in ("test", "at_k")} | {"note": "not measured"}
    assert "sae_lens batchtopk" not in best_of([failed], Cell(*CELL))
    folders = {folder_of(row) for row in rows}
    assert len(folders) == len(rows) and {folder.name for folder in folders} == {"layers.9"}


def test_probes_and_stability_are_kept_and_shown_beside_the_best_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.harness.shapes import Cell
    from benchmarks.quality import concepts
    from benchmarks.quality.grid import Rows
    from sae import Sae, SaeConfig
    from sae.data.labelled import Task

    torch.manual_seed(0)
    rows = Rows(tmp_path / "rows.json")
    for row in some_rows()[:-1]:
        rows.add(row)
    cell = Cell(*CELL)
    monkeypatch.setattr(concepts, "folder_of", lambda row: tmp_path / f"{row['library']}{row['multiple']}{row['seed']}")
    for row in rows.content["rows"]:
        Sae(16, SaeConfig(num_latents=64, k=4)).save_to_disk(concepts.folder_of(row))
    x = torch.randn(300, 16)
    x[:150, 0] += 4  # the class
    task = Task("a", [""] * 300, [True] * 150 + [False] * 150)
    long = task._replace(name="c", texts=["so long"] * 300)
    monkeypatch.setattr(concepts, "probing_tasks", lambda names, texts: [task, task._replace(name="b"), long])
    monkeypatch.setattr(concepts.LastTokens, "of", lambda self, task: {9: x})
    monkeypatch.setattr(concepts.Source, "validation", lambda self: x)
    monkeypatch.setattr(concepts.Source, "test", lambda self: x)
    concepts.stability(rows, [cell])
    concepts.probe(rows, [cell], 300, 5)
    concepts.probe(rows, [cell], 300, 5)  # everything is there
    content = json.loads((tmp_path / "rows.json").read_text())
    labels = [each["label"] for each in content["probes"]]
    assert labels == ["sae topk × 1", "sae_lens batchtopk × 10", "random rows", "PCA", concepts.RAW]
    assert len(content["rows"]) == 4 and [each["label"] for each in content["stability"]] == ["sae topk × 1"]
    found = concepts.probes_of(rows, cell, 300)
    assert list(found["PCA"]["1"]) == ["a", "b"] and found[concepts.RAW][concepts.RAW]["a"] > 0.97
    assert found["PCA"]["16"]["b"] > 0.9
    first, second = (Sae.load_from_disk(concepts.folder_of(row)).W_dec for row in content["rows"][:2])
    cosines = np.abs(F.normalize(first, dim=1).detach().numpy() @ F.normalize(second, dim=1).detach().numpy().T)
    assert cosines.mean() < content["stability"][0]["pw_mcc"] <= cosines.max(1).mean() + 1e-3
    lines = list(concepts.table(rows, cell, 300))
    ours, theirs = (found[label]["1"]["a"] for label in labels[:2])
    assert lines[2].startswith(f"| sae topk × 1 | {ours:.4f} | ")
    assert lines[-1].startswith(f"| sae topk × 1 − the best peer at that k | {ours - theirs:+.4f} ± 0.0000 |")


def test_an_advantage_is_a_mean_over_tasks_with_its_interval() -> None:
    from benchmarks.quality.concepts import difference
    from sae.evaluation.moments import Z

    mean, half = difference({"a": 0.9, "b": 0.7, "c": 0.8}, {"a": 0.8, "b": 0.7, "c": 0.6})
    assert mean == pytest.approx(0.1) and half == pytest.approx(Z * 0.1 / 3**0.5)


def test_everybody_gets_the_tokens_of_the_self_test_behind_those_that_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.quality import known_features

    monkeypatch.setattr(known_features, "CACHE", tmp_path)
    monkeypatch.setattr(known_features, "FITTED", 100)
    world = known_features.World(2, 1024, num_features=40, width=8, batch=512)
    x = torch.from_numpy(np.load(world.file()))
    first = next(iter(world.store.source))["synthetic"]
    assert x.shape == (100 + 1024, 8) and torch.equal(x[:100], world.validation.x) and torch.equal(x[100:612], first)
    assert not torch.equal(world.validation.x[:10], world.store.held_out_sample().x[:10])


@pytest.mark.parametrize("selection", ["topk", "batchtopk"])
def test_everybody_is_compared_at_the_l0_that_was_asked_for(selection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.quality import known_features
    from sae import Sae, SaeConfig

    monkeypatch.setattr(known_features, "FITTED", 4000)
    world = known_features.World(4, 1024, num_features=40, width=16, batch=512, l0=2.5)
    sae = Sae(16, SaeConfig(num_latents=40, k=4, selection=selection))
    found = known_features.at_l0(sae, world)
    fires = found.encode(world.validation.x).top_acts > 0
    assert fires.sum(1).float().mean().item() == pytest.approx(2.5, rel=0.01)


def test_the_rate_that_finds_most_features_on_other_tokens_is_shown() -> None:
    from benchmarks.harness.shapes import FAMILY_CONTESTANTS
    from benchmarks.quality.known_features import World, row_of, table

    peer = next(c for c in FAMILY_CONTESTANTS if c.name == "sparsify topk")
    names = ("mcc", "found", "dead", "l0", "fvu")
    rows = [
        row_of(peer, World(2, 1000), multiple, seed)
        | {"validation": {"f1": chosen_by}, "test": {"f1": f1} | dict.fromkeys(names, 0.5)}
        for multiple, seed, chosen_by, f1 in ((1.0, 0, 0.4, 0.9), (3.0, 0, 0.5, 0.2), (3.0, 1, 0.5, 0.4))
    ]
    rows.append(row_of(peer, World(2, 1000), 10.0, 0) | {"note": "not measured"})
    line = list(table(rows))[2]
    assert line == "| sparsify topk, k 2 | × 3 of 1, 3 | 0.300 | 0.500 | 50.0% | 50.0% | 0.50 | 0.5000 |"
