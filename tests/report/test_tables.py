"""Tables on the terminal: names stay whole, however long they are, and no number is cut."""

import pytest
from rich.table import Table

from sae.report.terminal import show

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
