"""Tables on the terminal: names stay whole, however long they are, and no number is cut."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table

from sae.evaluation.reconstruction import ReconstructionMetrics
from sae.report.frontier import draw_sweep_frontier
from sae.report.html import plain
from sae.report.terminal import show, show_rows
from sae.report.training import draw_curves, report

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
