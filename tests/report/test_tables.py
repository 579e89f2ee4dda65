"""Tables on the terminal: names stay whole, however long they are, and no number is cut."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table

from sae.evaluation.reconstruction import ReconstructionMetrics
from sae.report.frontier import draw_sweep_frontier
from sae.report.html import plain
from sae.report.terminal import show, show_rows
from sae.report.training import draw_curves, report
from sae.report.unused import note

NAMES = ["encoder.albert_layer_groups.0.albert_layers.0.attention.call11", "layers.3"]
NUMBERS = [["0.1234", "32.0"], ["0.5678", "1.0"]]


def table() -> Table:
    shown = Table(title="what it is of")
    shown.add_column("hookpoint", overflow="fold")
    for heading in ("FVU", "L0"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name, numbers in zip(NAMES, NUMBERS, strict=True):
        shown.add_row(name, *numbers)
    return shown


@pytest.mark.parametrize("terminal", ["", "1"])
@pytest.mark.parametrize("columns", ["40", "60", "80", "200"])
def test_every_name_and_number_stands_in_one_line(
    columns: str, terminal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, terminal) if terminal else monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    show(table())
    lines = capsys.readouterr().out.splitlines()
    at = [next(i for i, line in enumerate(lines) if name in line) for name in NAMES]
    for first, name, numbers in zip(at, NAMES, NUMBERS, strict=True):
        after = lines[first].partition(name)[2]
        row = after if numbers[0] in after else lines[first + 1]
        assert [word for word in row.split() if word[0].isdigit()] == numbers
    stacked = numbers[0] not in lines[at[-1]]
    assert stacked == (bool(terminal) and int(columns) <= 80)


HOSTILE = [
    "[red]layers.0[/]",
    "[/]",
    "[bold",
    r"layers\[0]",
    "a [link=https://x]b",
    r"$\frac$",
    "_hidden",
    ":smile: \x1b[31m",
]
METRICS = ReconstructionMetrics(9, 0.5, 0.5, 0, 4.0, 0.1)


def by_show_rows(folder: Path) -> None:
    show_rows("[title]", ["hookpoint", "checkpoint"], ["FVU"], [[name, name, "[0.5]"] for name in HOSTILE], once=True)


def by_report(folder: Path) -> None:
    metrics = METRICS._replace(fvu_at={"[b]inner": 0.25})
    report(folder, folder, dict.fromkeys(HOSTILE, metrics), 99, dict.fromkeys(HOSTILE, 1.0))


@pytest.mark.parametrize("terminal", ["", "1"])
@pytest.mark.parametrize(("shows", "also"), [(by_show_rows, ["[title]", "[0.5]"]), (by_report, ["[b]inner", "0.2500"])])
def test_names_of_strangers_are_text_and_no_markup(
    shows: Callable[[Path], None], also: list[str], terminal: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "30" if terminal else "200")
    monkeypatch.setenv("FORCE_COLOR", terminal) if terminal else monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    shows(tmp_path)
    out = capsys.readouterr().out
    for name in [*map(plain, HOSTILE), *also]:
        assert name in out, name


def test_names_of_strangers_are_no_formulas_in_pictures(tmp_path: Path) -> None:
    record = {f"{name}/{metric}": 0.5 for name in HOSTILE for metric in ("fvu", "l0", "dead_fraction", "auxk")}
    draw_curves([record | {"tokens": 8.0}], tmp_path / "curves.png")
    draw_sweep_frontier({rf"$\bad{name}/{name}": METRICS for name in HOSTILE if "/" not in name}, tmp_path / "f.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("curves.png", "f.png"))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([(0.134, 11.0), (0.5, 90.0)], "on 44,000 tokens a latent fires 11 times in the mean, .* --max_tokens 160000,"),
        ([(0.009, 11.0), (0.134, 40.0)], None),  # next to none are unused, or the tokens suffice
        ([(1.0, 0.0)], None),  # nothing fires: more tokens would tell nothing
    ],
)
def test_unused_latents_of_few_tokens_may_be_rare_ones(rows: list[tuple[float, float]], told: str | None) -> None:
    said = note(44_000, rows)
    assert (said is None) == (told is None) and re.search(told or "", said or "")


def test_the_end_of_a_run_says_how_far_unused_can_be_trusted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report(tmp_path, tmp_path, {"layers.0": METRICS._replace(firings=2.0)}, 99, {"layers.0": 1.0})
    assert "on 9 tokens a latent fires 2 times in the mean" in capsys.readouterr().out
    report(tmp_path, tmp_path, {"layers.0": METRICS._replace(firings=50.0)}, 99, {"layers.0": 1.0})
    assert "times in the mean" not in capsys.readouterr().out
