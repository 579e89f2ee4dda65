"""What a person sees and what is left for the plots; none of it may change training or ask a question."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import files_of_at_most
from matplotlib.image import imread
from tiny_models import VOCAB_SIZE, tiny_model
from whole_runs import stop_after

from sae import SaeConfig, SaeTrainer, TrainConfig
from sae.evaluation.reconstruction import ReconstructionMetrics
from sae.report.training import draw_curves, read_records, report
from sae.runs import log
from sae.runs.log import Detached, JsonLines, Progress, Sink, Stopwatch, WandbSink, note, why_no_wandb


def make_records(names: list[str], count: int) -> list[dict[str, float]]:
    metrics = {"fvu": 0.5, "l0": 4.0, "auxk": 1.0, "dead_fraction": 0.25}
    return [
        {"step": n, "tokens": 100 * n, "tokens_per_second": 1234.5}
        | {f"{name}/{metric}": value / n for name in names for metric, value in metrics.items()}
        for n in range(1, count + 1)
    ]


# metrics.jsonl


def test_every_record_is_on_disk_when_write_returns_and_comes_back_as_it_was(tmp_path: Path) -> None:
    path, records = tmp_path / "metrics.jsonl", make_records(["layers.0"], 3)
    sink = JsonLines(path)
    for number, record in enumerate(records, start=1):
        sink.write(record)
        assert read_records(path) == records[:number]
    sink.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == records


@pytest.mark.parametrize("step", [0, 1, 3, 9])
def test_a_run_that_continues_at_a_step_keeps_the_records_until_then(tmp_path: Path, step: int) -> None:
    path, records = tmp_path / "metrics.jsonl", make_records(["a"], 3)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 4, "tok')
    sink = JsonLines(path, keep_until_step=step)
    sink.write({"step": step + 1})
    sink.close()
    assert read_records(path) == [record for record in records if record["step"] <= step] + [{"step": step + 1}]


@pytest.mark.parametrize("cut", [1, 2, 10, 60])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path, cut: int) -> None:
    path, records = tmp_path / "metrics.jsonl", make_records(["a", "b"], 3)
    path.write_text("".join(json.dumps(record) + "\n" for record in records)[: -1 - cut])
    assert read_records(path) == records[:2]
    assert read_records(tmp_path / "absent.jsonl") == []


# Weights & Biases


@pytest.fixture
def no_wandb_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Installed, and a home without any configuration."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    find_only(monkeypatch, lambda: SimpleNamespace(name="wandb"))


def find_only(monkeypatch: pytest.MonkeyPatch, found: Callable[[], Any]) -> None:
    """Let `find_spec` answer for wandb as it is told, and as it is for all else."""
    find = log.importlib.util.find_spec
    monkeypatch.setattr(
        log.importlib.util,
        "find_spec",
        lambda name, package=None: found() if name == "wandb" else find(name, package),
    )


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "not configured (wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline)"),
        ({"WANDB_MODE": "disabled"}, "WANDB_MODE is disabled"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "x"}, "WANDB_MODE is disabled"),
        ({"WANDB_MODE": "offline"}, None),
        ({"WANDB_API_KEY": "x"}, None),
    ],
)
def test_wandb_is_used_only_where_it_would_ask_nothing(
    no_wandb_settings: None, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], reason: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = why_no_wandb()
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


@pytest.mark.parametrize(
    ("host", "server", "configured"),
    [
        ("api.wandb.ai", None, True),
        ("example.org", None, False),
        ("wandb.example.org", "https://wandb.example.org/api", True),
        ("api.wandb.ai", "https://wandb.example.org", False),
    ],
)
def test_a_login_in_netrc_is_a_configuration_for_its_server(
    no_wandb_settings: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    host: str,
    server: str | None,
    configured: bool,
) -> None:
    (tmp_path / ".netrc").write_text(f"machine {host}\n  login user\n  password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert (why_no_wandb() is None) == configured


def test_wandb_that_is_not_installed_is_said_with_the_way_to_get_it(
    no_wandb_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    find_only(monkeypatch, lambda: None)
    assert why_no_wandb() == "it is not installed (pip install wandb)"


class FakeWandb(SimpleNamespace):
    """As much of wandb as we use; it remembers what it got."""

    def __init__(self) -> None:
        self.records: list[tuple[dict[str, float], int]] = []
        self.finished = 0
        self.options: dict[str, Any] = {}

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def init(self, **options: Any) -> "FakeWandb":
        self.options = options
        return self

    def log(self, record: dict[str, float], *, step: int) -> None:
        self.records.append((record, step))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def fake_wandb(no_wandb_settings: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield fake


def tiny_trainer(folder: Path, **changes: Any) -> SaeTrainer:
    options = {"batch_size": 4, "save_dir": str(folder), "run_name": "mine", "layers": [0, 1]} | changes
    tokens = torch.randint(3, VOCAB_SIZE, (44, 8), generator=torch.Generator().manual_seed(0))
    return SaeTrainer(TrainConfig(SaeConfig(expansion_factor=2, k=4), **options), tokens, tiny_model("llama"))


@pytest.mark.parametrize("frequency", [1, 4])
def test_wandb_gets_the_records_of_metrics_jsonl_at_their_steps(
    tmp_path: Path, fake_wandb: FakeWandb, frequency: int
) -> None:
    trainer = tiny_trainer(tmp_path, log_every=frequency)
    trainer.fit()
    records = read_records(trainer.folder.metrics)
    assert fake_wandb.records == [(record, record["step"]) for record in records]
    assert [record["step"] for record in records] == ([*range(1, 11)] if frequency == 1 else [4, 8, 10])
    assert fake_wandb.options["name"] == "mine" and fake_wandb.options["dir"] == str(tmp_path / "mine")
    assert fake_wandb.finished == 1


def test_a_resumed_run_goes_on_in_wandb_and_another_run_is_another(tmp_path: Path, fake_wandb: FakeWandb) -> None:
    ids = []
    stop_after(tiny_trainer(tmp_path), 5)
    ids.append(fake_wandb.options["id"])
    tiny_trainer(tmp_path, resume=True).fit()
    assert fake_wandb.options["resume"] == "allow" and fake_wandb.options["id"] == ids[0]
    tiny_trainer(tmp_path, run_name="other").fit()
    ids.append(fake_wandb.options["id"])
    assert ids[0] != ids[1] and all(re.fullmatch("[0-9a-f]{8}", each) for each in ids)
    (tmp_path / "mine/wandb/run-id").write_bytes(b"../elsewhere")
    tiny_trainer(tmp_path, resume=True).fit()
    assert re.fullmatch("[0-9a-f]{8}", fake_wandb.options["id"]) and fake_wandb.options["id"] not in ids


def test_wandb_is_finished_after_an_error_too(tmp_path: Path, fake_wandb: FakeWandb) -> None:
    with pytest.raises(FloatingPointError):
        tiny_trainer(tmp_path, lr=1e30).fit()
    assert fake_wandb.finished == 1


class Trouble(FakeWandb):
    """Weights & Biases that fails, or never answers, at one of the calls."""

    def __init__(self, at: str, how: str) -> None:
        super().__init__()
        self.at, self.how, self.answer = at, how, Event()

    def meet(self, call: str) -> None:
        if call == self.at and self.how == "hangs":
            self.answer.wait(60)
        elif call == self.at:
            raise {"fails": ConnectionError("no\nnetwork"), "exits": SystemExit(1)}[self.how]

    def init(self, **options: Any) -> "FakeWandb":
        self.meet("init")
        return super().init(**options)

    def log(self, record: dict[str, float], *, step: int) -> None:
        self.meet("log" if step == 4 else "")
        super().log(record, step=step)

    def finish(self) -> None:
        super().finish()
        self.meet("finish")


@pytest.mark.parametrize("how", ["fails", "exits", "hangs"])
@pytest.mark.parametrize("at", ["init", "log", "finish"])
def test_wandb_that_fails_or_hangs_costs_one_line_and_changes_nothing(
    tmp_path: Path, no_wandb_settings: None, monkeypatch: pytest.MonkeyPatch, capsys: Any, at: str, how: str
) -> None:
    trouble = Trouble(at, how)
    monkeypatch.setitem(sys.modules, "wandb", trouble)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(log, "PATIENCE", 0.2)
    trainer = tiny_trainer(tmp_path)
    trainer.fit()
    trouble.answer.set()
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if "Weights & Biases" in line]
    reason = {"fails": "ConnectionError: no network", "exits": "SystemExit: 1", "hangs": "it was not done after 0.2 s"}
    assert len(lines) == 1 and f"no longer logging to Weights & Biases ({reason[how]})" in lines[0]
    assert lines[0].endswith(f"metrics go to {trainer.folder.metrics}")
    assert [record["step"] for record in read_records(trainer.folder.metrics)] == [*range(1, 11)]
    assert (trainer.folder.path / "evaluation.json").exists() and "FVU, L0 and unused" in said.out
    assert how == "hangs" or trouble.finished == (at != "init")


def test_a_process_ends_with_status_0_while_a_service_still_hangs(tmp_path: Path) -> None:
    script = """
import time, sae.runs.log as log
log.PATIENCE = 0.2
class Deaf:
    def write(self, record): time.sleep(3600)
    def close(self): time.sleep(3600)
sink = log.Detached(Deaf, what="it", instead="metrics.jsonl")
sink.write({"step": 1})
sink.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert done.stderr == "no longer logging to it (it was not done after 0.2 s); metrics go to metrics.jsonl\n"


def test_a_service_that_takes_nothing_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log, "_MAX_WAITING", 3)
    answer = Event()
    sink = Detached(lambda: answer.wait(60) and JsonLines(tmp_path / "a"), what="it", instead=tmp_path / "b")  # type: ignore[arg-type, return-value]
    for step in range(9):
        sink.write({"step": step})
    sink.close()
    answer.set()
    assert capsys.readouterr().err.count("no longer logging to it (it takes no more records)") == 1


def test_metrics_that_a_full_disk_does_not_take_are_there_when_it_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, records = tmp_path / "metrics.jsonl", make_records(["a"], 6)
    sink = JsonLines(path)
    sink.write(records[0])
    with files_of_at_most(path.stat().st_size + 10):  # in the middle of a line
        for record in records[1:4]:
            sink.write(record)
        assert read_records(path) == records[:1]
    for record in records[4:]:
        sink.write(record)
        assert read_records(path) == records[: records.index(record) + 1]
    sink.close()
    assert path.read_text() == "".join(json.dumps(record) + "\n" for record in records)
    assert capsys.readouterr().err.count("metrics.jsonl cannot be written (File too large)") == 1


def test_wandb_is_left_alone_when_it_is_not_wanted(tmp_path: Path, fake_wandb: FakeWandb) -> None:
    tiny_trainer(tmp_path, log_to_wandb=False).fit()
    assert fake_wandb.records == [] and fake_wandb.options == {}


def test_the_sinks_are_sinks(tmp_path: Path, fake_wandb: FakeWandb) -> None:
    wandb = partial(WandbSink, name="a", config={}, folder=tmp_path)
    for sink in (JsonLines(tmp_path / "a"), wandb(), Detached(wandb, what="it", instead=tmp_path)):
        assert isinstance(sink, Sink)
        sink.close()


# The terminal


def test_progress_shows_tokens_speed_time_left_and_the_mean_fvu(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=4000, done=1000) as progress:
        progress.show({"step": 1, "a/fvu": 0.2, "b/fvu": 0.4, "a/l0": 9.0})
        progress.advance(1000)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "2.00k/4.00k" in last and "50%" in last and "tok/s" in last and "FVU 0.3000" in last and "<" in last


def test_a_note_is_one_line_of_its_own_beside_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=10) as progress:
        note("something to know")
        progress.advance(10)
    captured = capsys.readouterr()
    assert "something to know" in captured.err.replace("\r", "\n").splitlines() and captured.out == ""


def test_a_stopwatch_counts_what_happens_inside_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Stopwatch(torch.device("cpu"))
    assert watch.read() == 0
    for inside, outside in ((2.0, 5.0), (0.5, 7.0)):
        with watch:
            now[0] += inside
        now[0] += outside
    assert watch.read() == watch.read() == 2.5


# The report


def results(names: list[str]) -> dict[str, ReconstructionMetrics]:
    return {
        name: ReconstructionMetrics(96, 0.1 + index, 0.1 + index, 0, 3.9, 0.125, 50.0)
        for index, name in enumerate(names)
    }


def test_the_report_says_everything_and_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    names = [f"layers.{n}" for n in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in make_records(names, 5)))
    (tmp_path / "step_5").mkdir()
    report(tmp_path, tmp_path / "step_5", results(names), 5000, dict.fromkeys(names, 2500.0))
    lines = capsys.readouterr().out.splitlines()
    assert any("5,000 tokens" in line and "96 held-out" in line for line in lines)
    for index, name in enumerate(names):
        (row,) = [line for line in lines if name in line]
        assert row.replace("│", " ").split() == [name, f"{0.1 + index:.4f}", "3.9", "5.0%", "12.5%", "2,500"]
    assert any("1,234 tokens/s end to end" in line for line in lines)
    for name in ("step_5", "metrics.jsonl", "curves.png"):
        assert any(line.endswith(str(tmp_path / name)) for line in lines)
    measured = results(names)["layers.1"]._asdict()
    assert measured.pop("fvu_at") is None
    assert json.loads((tmp_path / "evaluation.json").read_text())["layers.1"] == measured


def test_a_report_that_cannot_be_written_is_seen_and_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.json").mkdir()
    with pytest.raises(OSError, match="cannot be written .* the weights are saved, the table above is not$"):
        report(tmp_path, tmp_path / "step_5", results(["layers.0"]), 5000, {"layers.0": 1.0})
    assert "0.1000" in capsys.readouterr().out


def test_without_a_record_nothing_is_said_about_a_picture_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(tmp_path, tmp_path / "step_0", results(["a"]), 1, {"a": 1.0})
    for line in capsys.readouterr().out.splitlines():
        path = Path(line.split()[-1]) if line.strip() else Path()
        assert not path.is_absolute() or path.exists(), line


@pytest.mark.parametrize(("num_names", "num_records"), [(1, 1), (3, 40), (70, 3)])
def test_the_curves_are_a_picture_with_a_line_of_its_own_colour_per_hookpoint(
    tmp_path: Path, num_names: int, num_records: int
) -> None:
    draw_curves(make_records([f"layers.{n}" for n in range(num_names)], num_records), tmp_path / "curves.png")
    pixels = imread(tmp_path / "curves.png")[..., :3]
    assert min(pixels.shape[:2]) > 500
    quantised = (pixels * 7).round().astype(np.int64)
    saturated = quantised[(pixels.max(-1) - pixels.min(-1)) > 0.3]
    assert len(np.unique(saturated, axis=0)) >= min(num_names, 3)


def test_no_records_no_picture(tmp_path: Path) -> None:
    draw_curves([], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
