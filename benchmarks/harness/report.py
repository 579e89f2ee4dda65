"""What was measured, as rows: written to a JSON file, shown as tables, and held against the goals."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import Summary, Turn
from benchmarks.harness.shapes import Contestant

SCHEMA = 1


@dataclass
class Row:
    """One contestant at one task. What was not measured is None, and `note` says why."""

    section: str
    task: str
    """Shape, stage or model."""
    tokens: int
    """Per step."""
    library: str
    setting: str
    documented: bool = True
    """Whether the library offers this setting."""
    seconds: Summary | None = None
    """Per step."""
    turns: list[float] = field(default_factory=list)
    """Seconds per step of each turn, in order: the same index means the same round."""
    other_cores: list[float | None] = field(default_factory=list)
    """Cores that other processes kept busy, turn by turn."""
    peak_bytes: int | None = None
    """High-water mark: resident set of the process on a CPU, allocated memory on CUDA."""
    baseline_bytes: int | None = None
    """What the process had after its imports."""
    fvu: Summary | None = None
    """Held-out fraction of variance unexplained, over several seeds."""
    note: str = ""

    @classmethod
    def of(
        cls, section: str, task: str, tokens: int, who: Contestant, turns: Sequence[Turn] = (), **more: Any
    ) -> "Row":
        """A row with these turns; without any, and without an FVU, it says `not measured`."""
        row = cls(section, task, tokens, who.library, who.setting, who.documented, **more)
        if turns:
            row.turns = [turn.seconds for turn in turns]
            row.other_cores = [turn.other_cores for turn in turns]
            row.seconds = Summary.of(row.turns)
        elif row.fvu is None and not row.note:
            row.note = "not measured"
        return row


@dataclass
class Report:
    """One run of the benchmark."""

    date: str
    machine: dict[str, Any]
    versions: dict[str, dict[str, str]]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Report":
        """Read what `save` wrote. Raises ValueError for a file of another schema."""
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("schema") != SCHEMA:
            raise ValueError(f"{path.name} must have schema {SCHEMA}, got {data.get('schema')}; measure again")
        data["rows"] = [_row_of(row) for row in data["rows"]]
        return cls(**data)


def _row_of(data: dict[str, Any]) -> Row:
    for name in ("seconds", "fvu"):
        data[name] = data[name] and Summary(**data[name])
    return Row(**data)


# Tables

COLUMNS = (
    "",
    "ms/step",
    "min–max",
    "tokens/s",
    "peak MB",
    "its own",
    "held-out FVU",
    "min–max ",
    "other cores",
    "note",
)


def tables(report: Report) -> str:
    """Everything, as Markdown that reads well as plain text."""
    parts = [_heading(report)]
    for section, task, tokens in dict.fromkeys((row.section, row.task, row.tokens) for row in report.rows):
        chosen = [row for row in report.rows if (row.section, row.task, row.tokens) == (section, task, tokens)]
        cells = [_cells(row) for row in chosen]
        used = [name for name in COLUMNS if name == "" or any(cell.get(name) for cell in cells)]
        parts.append(f"### {section}: {task}, {tokens} tokens a step\n\n" + markdown(used, cells))
    return "\n\n".join(parts)


def markdown(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table with aligned columns; numbers to the right."""
    lines = [dict(zip(columns, columns, strict=True)), *rows]
    widths = [max(3, *(len(line.get(name, "")) for line in lines)) for name in columns]
    left = [index in (0,) or name in ("note", "verdict", "against") for index, name in enumerate(columns)]
    text = []
    for line in lines:
        cells = [line.get(name, "") for name in columns]
        padded = [c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(cells, widths, left, strict=True)]
        text.append("| " + " | ".join(padded) + " |")
    rule = "|".join("-" * (w + 2) if is_left else "-" * (w + 1) + ":" for w, is_left in zip(widths, left, strict=True))
    return "\n".join([text[0], f"|{rule}|", *text[1:]])


def _heading(report: Report) -> str:
    machine = ", ".join(str(value) for value in report.machine.values() if value)
    versions = [f"{name}: " + " ".join(f"{p} {v}" for p, v in found.items()) for name, found in report.versions.items()]
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items())
    return "\n".join([f"## {report.date}: {machine}", "", settings, *versions])


def _cells(row: Row) -> dict[str, str]:
    cells = {"": f"{row.library}, {row.setting}" + ("" if row.documented else " *"), "note": row.note}
    if row.seconds is not None:
        cells["ms/step"] = _milliseconds(row.seconds.median)
        cells["min–max"] = f"{_milliseconds(row.seconds.min)}–{_milliseconds(row.seconds.max)}"
        if row.section != "stage":
            cells["tokens/s"] = f"{row.tokens / row.seconds.median:,.0f}"
    if row.peak_bytes is not None:
        cells["peak MB"] = f"{row.peak_bytes / 1e6:,.0f}"
        cells["its own"] = f"{(row.peak_bytes - (row.baseline_bytes or 0)) / 1e6:,.0f}"
    if row.fvu is not None:
        cells["held-out FVU"] = f"{row.fvu.median:.4f}"
        cells["min–max "] = f"{row.fvu.min:.4f}–{row.fvu.max:.4f}"
    if known := [cores for cores in row.other_cores if cores is not None]:
        cells["other cores"] = f"{statistics.median(known):.1f} (≤ {max(known):.1f})"
    return cells


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"
