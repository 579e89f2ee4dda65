"""The quality benchmark measures what it says: FVU and unused latents of a run, its best rate, and the law's fit."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch


def test_the_fit_finds_the_law_that_made_the_points() -> None:
    from benchmarks.quality.scaling_law import KS, NAMES, fit, law

    true = torch.tensor([1.0, 0.26, -0.017, -0.042, -3.0, -0.2], dtype=torch.float64)
    points = [
        (n, k, math.exp(float(law(true, torch.tensor(float(n)), torch.tensor(float(k))))))
        for n in (512, 4096)
        for k in KS
    ]
    parameters, error = fit(points, starts=2)
    assert error < 1e-3
    found = torch.tensor([parameters[name] for name in NAMES])
    n, k = torch.tensor(2048.0), torch.tensor(24.0)
    assert float(law(found, n, k)) == pytest.approx(float(law(true, n, k)), abs=1e-2)


@pytest.mark.slow
def test_a_worker_measures_rows_of_a_bf16_file_that_it_does_not_train_on(tmp_path: Path) -> None:
    from benchmarks.harness.pool import Worker
    from benchmarks.harness.worker import Job

    torch.manual_seed(0)
    x = (torch.randn(96, 32) * torch.linspace(0.1, 3, 32) + 2).bfloat16()
    x[:32] *= 100  # nothing like what is trained on
    path = tmp_path / "x.bf16"
    path.write_bytes(x.view(torch.int16).numpy().tobytes())
    job = Job("sae", d_in=32, num_latents=64, k=4, tokens=32, activations=str(path), first_row=64, steps=20)
    with Worker(job) as worker:
        worker.train(job.steps)
        strange, other = worker.measure(0, 32), worker.measure(32, 64)
    assert strange["fvu"] != other["fvu"] and 0.05 < other["fvu"] < 1
    assert 0 <= other["unused"] < 1 and 0 < other["l0"] <= 4


def test_blocks_of_the_model_that_are_kept_one_by_one_are_those_that_are_kept_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    from tiny_models import VOCAB_SIZE, tiny_model

    from benchmarks.quality import data

    model = tiny_model("gpt_neox").bfloat16()
    reader = data.Reader(lambda: tmp_path, "layers", model.config.hidden_size, (0, 1))
    for name, value in (("BLOCK_SEQUENCES", 3), ("CTX_LEN", 8), ("READERS", {"english": reader})):
        monkeypatch.setattr(data, name, value)
    monkeypatch.setattr(data, "load", lambda *of: model)
    kept = {}
    for name, calls in (("together", [(42, None)]), ("one by one", [(21, [1]), (42, [0]), (42, [0, 1])])):
        monkeypatch.setattr(data, "CACHE", tmp_path / name)
        (tmp_path / name / "quality/english").mkdir(parents=True)
        tokens = np.random.default_rng(0).integers(3, VOCAB_SIZE, (12, 8))
        np.save(tmp_path / name / "quality/english/tokens.npy", tokens)
        for wanted, layers in calls:
            data.collect("english", wanted, layers=layers)
        sources = [data.Source("english", layer) for layer in (0, 1)]
        assert [source.blocks() for source in sources] == [3, 3]
        kept[name] = [source.path.read_bytes() for source in sources]
    assert kept["together"] == kept["one by one"] and kept["together"][0] != kept["together"][1]


def test_tokens_to_count_unused_latents_on_are_behind_those_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.quality import data, grid

    monkeypatch.setattr(data, "CACHE", tmp_path)
    source = data.Source("english", 9)
    source.path.parent.mkdir(parents=True)
    source.path.write_bytes(bytes(576 * 2 * (grid.TEST_END + 100)))
    cell = grid.Cell("english", 9, 64, 4, 50, 20)
    assert grid._unseen(cell, 60) == (grid.TEST_END + 40, grid.TEST_END + 100)
    with pytest.raises(SystemExit, match="--unseen must be at most 60, .* got 61; keep more by .* --tokens 101"):
        grid._unseen(cell, 61)


def measured_row(library: str, multiple: float, seed: int, validation: float, test: float) -> dict[str, Any]:
    """A row of `quality/grid.py`, of one cell."""
    row = {"text": "english", "layer": 9, "num_latents": 64, "k": 4, "tokens": 1000, "batch": 10}
    row |= {"library": library, "multiple": multiple, "seed": seed}
    fvus = {"validation": validation, "test": test}
    return row | {name: {"fvu": fvu, "unused": 0.25, "l0": 4} for name, fvu in fvus.items()}


def test_the_best_rate_is_chosen_on_validation_tokens_and_reported_on_test_tokens(tmp_path: Path) -> None:
    from benchmarks.harness.shapes import SIGNUM
    from benchmarks.quality.grid import Cell, Rows, key
    from benchmarks.quality.tables import all_rows, best_multiple

    cell = Cell("english", 9, 64, 4, 1000, 10)
    rows = Rows(tmp_path / "rows.json")
    for multiple, validation, test in ((1.0, 0.5, 0.45), (3.0, 0.4, 0.55)):
        row = measured_row(SIGNUM.name, multiple, 0, validation, test)
        assert key(SIGNUM, cell, multiple, 0).items() <= row.items()
        rows.add(row)
    rows.add(measured_row(SIGNUM.name, 1.0, 1, 0.1, 0.1))  # another seed decides nothing
    rows = Rows(tmp_path / "rows.json")
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 3
    own = rows.of(SIGNUM, cell, 0)
    assert [row["multiple"] for row in own] == [1.0, 3.0] and best_multiple(own) == 3.0
    assert list(all_rows(own))[2].endswith("| 0.4500 | 25.0% |  |  | 1, 3 | 3 | 0.5500 | 25.0% |  |  |")
    own[0]["grafted"] = {"kl": 0.125, "ce_recovered": 0.975}
    assert "| 0.4500 | 25.0% | 0.125 | 97.50% | 1, 3 |" in list(all_rows(own))[2]
    own[0]["multiple"] = 0.3  # a default that nobody measured leaves a gap
    assert "| sparsify default (signum) |  | | |  | 0.3, 3 | 3 | 0.5500" in list(all_rows(own))[2]


def test_the_best_peer_is_chosen_on_validation_tokens_and_all_seeds_are_reported() -> None:
    from benchmarks.harness.shapes import ADAM, OURS, QUALITY_CONTESTANTS, SIGNUM
    from benchmarks.quality.tables import beside_all, beside_best_peer

    rows = [
        measured_row(OURS.name, 1.0, 0, 0.3, 0.2),
        measured_row(OURS.name, 1.0, 1, 0.3, 0.4),
        measured_row(SIGNUM.name, 1.0, 0, 0.6, 0.1),  # the best on test tokens, which nothing may be chosen on
        measured_row(ADAM.name, 1.0, 0, 0.9, 0.9),
        measured_row(ADAM.name, 20.0, 0, 0.5, 0.7),
        measured_row(ADAM.name, 20.0, 1, 0.5, 0.5),
        {**measured_row(ADAM.name, 3.0, 0, 0.1, 0.1), "validation": None, "note": "not measured"},
    ]
    del rows[-1]["test"]
    for row in rows[:-1]:
        row["grafted"] = {"kl": row["test"]["fvu"], "ce_recovered": 1 - row["test"]["fvu"]}
    lines = list(beside_best_peer(rows))
    assert "| 1,000 tokens, 64 latents, k 4 | **0.3000** · 0.6000 a20 · 50.0% |" in lines
    assert "| 1,000 tokens, 64 latents, k 4 | **0.300 · 70.00%** · 0.600 · 40.00% |" in lines

    assert len(list(beside_all(rows, 64, 4))) == 2 + 2 * len(QUALITY_CONTESTANTS) - 1  # no column: some are missing
    rows += [measured_row(c.name, 1.0, 0, 0.8, 0.8) for c in QUALITY_CONTESTANTS[3:]]
    table = list(beside_all(rows, 64, 4))
    assert table[0] == "| FVU | 1,000 tokens, block 9 |" and "| sae default | 0.3000 |" in table
    assert "| sparsify adam | 0.9000 |" in table and "| sparsify adam, best rate | 0.6000 (× 20) |" in table


def test_rows_of_other_tokens_under_the_same_name_are_not_mixed(tmp_path: Path) -> None:
    from benchmarks.quality.grid import Rows

    rows = Rows(tmp_path / "rows.json")
    rows.check_text("english", "ab" * 32)
    rows.add({"seed": 0})
    again = Rows(tmp_path / "rows.json")
    again.check_text("english", "ab" * 32)
    with pytest.raises(SystemExit, match="holds rows of other english tokens .* choose another --out"):
        again.check_text("english", "cd" * 32)


def test_rows_that_were_grafted_into_other_sequences_are_not_continued(tmp_path: Path) -> None:
    from benchmarks.quality.grid import Rows

    path = tmp_path / "rows.json"
    Rows(path).check_grafted(176)  # an empty file takes any
    path.write_text(json.dumps({"rows": [{"library": "sae default"}]}))
    Rows(path).check_grafted(16)
    with pytest.raises(SystemExit, match="grafted into 16 sequences, and --grafted is 176; use --grafted 16"):
        Rows(path).check_grafted(176)


def test_grafting_what_was_there_changes_nothing_and_zeros_recover_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_models import VOCAB_SIZE, tiny_model

    from benchmarks.quality import graft
    from sae.lm import harvest

    model = tiny_model("llama").base_model.requires_grad_(False)
    model.embed_tokens.weight.mul_(5)
    monkeypatch.setattr(graft, "CTX_LEN", 16)
    monkeypatch.setattr(graft, "_model", lambda tests: model)
    sequences = torch.randint(3, VOCAB_SIZE, (8, 16))
    monkeypatch.setattr(graft, "_sequences", lambda tests: sequences)
    parts = [harvest(model, part, ["layers.1"])["layers.1"] for part in sequences.split(4)]
    same = torch.cat(parts)[:, 1:].flatten(0, 1)
    tests = graft.TestSequences("english", 8)
    kept = graft.grafted(tests, 1, same)
    assert kept["kl"] == 0 and kept["ce"] == kept["ce_clean"] != kept["ce_zero"] and kept["ce_recovered"] == 1
    lost = graft.grafted(tests, 1, torch.zeros_like(same))
    assert lost["kl"] > 1e-3 and lost["ce"] == lost["ce_zero"] and lost["ce_recovered"] == 0
    wrong = graft.grafted(tests, 1, same.roll(1, 0))
    assert wrong["kl"] > 1e-3 and wrong["ce"] not in (kept["ce"], lost["ce"])
