"""The benchmark of whole runs: it runs what it prints, takes the times apart, and measures everybody by one measure."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny
from torch import Tensor


def test_a_slow_beginning_shows_in_the_slowest_window_by_what_comes_after() -> None:
    from benchmarks.as_typed.runs import slowest_window

    def records(*seconds: float) -> list[tuple[float, float]]:
        return [(100.0 * (n + 1), sum(seconds[: n + 1])) for n in range(len(seconds))]

    assert slowest_window(records(*[9.0], *[1.0] * 40)) == pytest.approx(1)  # the first look does not count
    assert slowest_window(records(*[1.0] * 9, *[2.0] * 8, *[1.0] * 24)) == pytest.approx(0.5)
    assert slowest_window(records(*[1.0] * 33, *[4.0] * 8)) == pytest.approx(1)  # slow at the end, not at the start
    assert slowest_window(records(1.0)) is None and slowest_window([]) is None


def test_only_what_differs_from_the_defaults_is_typed_and_our_command_line_takes_it() -> None:
    from benchmarks.as_typed.__main__ import CASES
    from sae.commands.table import read

    (line,) = CASES["default-500k"].typed(500_000)
    assert " ".join(line) == (
        "SmolLM2-135M documentation.jsonl --layers 5 10 15 --max_tokens 500000 --ctx_len 256 --batch_size 16"
    )
    for case in CASES.values():
        for line in case.typed(case.tokens):
            _, cfg = read(line)
            assert cfg.batch_size == 16 and cfg.log_to_wandb
            assert case.expansion_factor in (None, cfg.sae.expansion_factor)


def test_a_massive_token_counts_only_in_the_fvu_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.as_typed import quality
    from sae import Sae, SaeConfig

    x = torch.randn(4, 16, 8)
    x[:, 0] *= 1e3
    x[1, 5] *= 1e3
    monkeypatch.setattr(quality.lm, "harvest", lambda model, rows, names: {"layers.1": x[rows[:, 0]]})
    one = Sae(8, SaeConfig(num_latents=64, k=2))
    rows = torch.arange(4)[:, None].expand(-1, 16)
    (found,) = quality.reconstruction(torch.nn.Identity(), rows, {"a": {"layers.1": one}})["a"].values()

    def fvu(where: Tensor) -> float:
        values = x.flatten(0, 1)[where].double()
        error = values - one(values.float()).recon
        return (error.square().sum() / (values - values.mean(0)).square().sum()).item()

    first = torch.arange(64) % 16 == 0
    assert found["fvu"] == pytest.approx(fvu(torch.ones(64, dtype=torch.bool)), rel=1e-4)
    assert found["fvu_without_first"] == pytest.approx(fvu(~first), rel=1e-4)
    assert found["fvu_without_massive"] == pytest.approx(fvu(~first & (torch.arange(64) != 21)), rel=1e-4)
    assert found["massive_tokens"] == 5 / 64


def test_a_run_as_typed_is_taken_apart_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.as_typed.runs import ours

    save_tiny(tmp_path / "model", "llama")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"word {n} " * 40}) + "\n" for n in range(60)))
    line = "model text.jsonl --layers 1 --ctx_len 16 --batch_size 4 --expansion_factor 4 --k 4 --max_tokens 1024"
    run, saved = ours(line.split(), tmp_path, threads=1)
    assert run.tokens == 1024 and (saved / "metrics.jsonl").exists()
    assert run.start > 0 and 0 < run.first_look < run.training and run.saving >= 0 and run.evaluation > 0
    parts = run.start + run.training + run.saving + run.evaluation
    assert parts == pytest.approx(run.total, abs=0.05)
    assert run.slowest_window is not None and run.slowest_steps is not None and run.slowest_steps > 0
    assert 10**8 < run.peak_until_trained <= run.peak_bytes and set(run.dead) == {"layers.1"}


def test_a_run_that_fails_says_why_and_the_other_rows_stay(tmp_path: Path) -> None:
    from benchmarks.as_typed.runs import RunError, ours

    with pytest.raises(RunError, match="ended with status 2: sae: error:"):
        ours(["missing-model", "missing.jsonl"], tmp_path, threads=1)


def test_the_tables_show_medians_ratios_and_what_was_typed() -> None:
    from benchmarks.as_typed.tables import show

    def run(library: str, speed: float) -> dict[str, object]:
        times = {"tokens": 100, "total": 1.0, "start": 0.1, "first_look": None, "training": 0.5, "saving": 0.1}
        more = {
            "evaluation": None,
            "slowest_window": 0.9,
            "peak_bytes": 10**9,
            "peak_until_trained": 10**9,
            "other_cores": 0.0,
            "dead": {"h": 0.25},
        }
        return {"library": library, "tokens_per_second": speed, **times, **more}

    row = {"case": "c", "asked_tokens": 100, "at": "now", "commit": "abc", "failed": "", "cache_seconds": None}
    row |= {"commands": {"sae": ["sae model text"], "sparsify": ["fit()"]}, "hookpoints": ["h"]}
    row |= {"runs": [run("sae", 10), run("sparsify", 2), run("sae", 30), run("sparsify", 4), run("sae", 12)]}
    row |= {"quality": {"sae": {"h": {"fvu": 0.125}}}}
    printed = show({"date": "d", "machine": {}, "versions": {}, "rows": [row]})
    assert "12 (10–30)" in printed and "4.00 ×" in printed and "    sae model text" in printed
    assert "0.1250" in printed and "25.0%" in printed
