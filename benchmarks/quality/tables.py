"""Markdown tables of the rows that `quality/grid.py` keeps: `python -m benchmarks.quality.tables FILE.json`.

What is shown was measured on test tokens, as a mean over seeds; which multiple of a learning rate is a library's best,
and which library is the best peer, is decided by the first seed's FVU on validation tokens.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.shapes import OURS, QUALITY_CONTESTANTS, Cell

Row = dict[str, Any]
LETTERS = {"sparsify adam": "a", "sparsify default (signum)": "s", "sae_lens default": "l"}
LETTERS |= {"dictionary_learning default": "d"}


def best_multiple(rows: list[Row]) -> float:
    """The multiple of the learning rate with the lowest FVU on validation tokens, of one library's rows of a cell."""
    first = [row for row in rows if row["seed"] == rows[0]["seed"] and "validation" in row]
    return min(first, key=lambda row: row["validation"]["fvu"])["multiple"] if first else 1.0


def all_rows(rows: list[Row]) -> Iterator[str]:
    """Per cell and library: at its default rate, and at the best of those tried."""
    measured = "FVU | unused | KL | recovered"
    yield f"| text, layer, latents, k, tokens, batch | library | {measured} | best of × | at × | {measured} |"
    yield "|---|---|" + "---:|" * 10
    for cell, libraries in _by_cell(rows).items():
        for name, own in libraries.items():
            best = best_multiple(own)
            tried = ", ".join(f"{multiple:g}" for multiple in sorted({row["multiple"] for row in own}))
            default, at_best = _summary(own, 1.0) or " | | | ", _summary(own, best)
            what = ", ".join(map(str, dataclasses.astuple(cell)))
            yield f"| {what} | {name} | {default} | {tried} | {best:g} | {at_best} |"


def beside_best_peer(rows: list[Row]) -> Iterator[str]:
    """A line for each size and length, a column for each block: ours and the best peer, FVU and what grafting does."""
    cells = _by_cell(rows)
    layers = sorted({cell.layer for cell in cells})
    lines = dict.fromkeys(dataclasses.replace(cell, layer=layers[0]) for cell in sorted(cells, key=_size))
    for title, show in (("FVU", _fvus), ("KL · cross-entropy recovered", _grafted)):
        yield f"| {title} | " + " | ".join(f"block {layer}" for layer in layers) + " |"
        yield "|---|" + "---:|" * len(layers)
        for line in lines:
            found = (cells.get(dataclasses.replace(line, layer=layer), {}) for layer in layers)
            columns = (show(libraries) if _is_comparison(libraries) else "" for libraries in found)
            yield f"| {line.tokens:,} tokens, {line.num_latents:,} latents, k {line.k} | " + " | ".join(columns) + " |"
        yield ""


def beside_all(rows: list[Row], num_latents: int = 4608, k: int = 32) -> Iterator[str]:
    """FVU of every library at its default and at its best rate, a column for each length and block of one size."""
    chosen = [row for row in rows if (row["num_latents"], row["k"]) == (num_latents, k)]
    cells = {cell: libraries for cell, libraries in _by_cell(chosen).items() if len(libraries) > len(LETTERS)}
    columns = sorted(cells, key=_size)
    yield "| FVU | " + " | ".join(f"{cell.tokens:,} tokens, block {cell.layer}" for cell in columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for c in QUALITY_CONTESTANTS:
        for default in (True,) if c == OURS else (True, False):
            found = []
            for cell in columns:
                own = cells[cell][c.name]
                multiple = 1.0 if default else best_multiple(own)
                at = "" if default else f" (× {multiple:g})"
                found.append(f"{_mean(own, multiple, 'test', 'fvu'):.4f}{at}" if _at(own, multiple) else "")
            yield f"| {c.name}{'' if default else ', best rate'} | " + " | ".join(found) + " |"


def _by_cell(rows: list[Row]) -> dict[Cell, dict[str, list[Row]]]:
    """The measured rows by cell and library, in the order of the contestants."""
    cells: dict[Cell, dict[str, list[Row]]] = {}
    for c in QUALITY_CONTESTANTS:
        for row in rows:
            if row["library"] == c.name and "test" in row:
                cell = Cell(*(row[field.name] for field in dataclasses.fields(Cell)))
                cells.setdefault(cell, {}).setdefault(c.name, []).append(row)
    return cells


def _size(cell: Cell) -> tuple[str, int, int, int, int, int]:
    return cell.text, cell.num_latents, cell.k, cell.tokens, cell.batch, cell.layer


def _at(rows: list[Row], multiple: float) -> list[Row]:
    return [row for row in rows if row["multiple"] == multiple]


def _mean(rows: list[Row], multiple: float, part: str, name: str) -> float:
    return statistics.mean(row[part][name] for row in _at(rows, multiple) if part in row)


def _is_comparison(libraries: dict[str, list[Row]]) -> bool:
    """Whether ours was measured, and a peer."""
    return OURS.name in libraries and len(libraries) > 1


def _best_peer(libraries: dict[str, list[Row]]) -> tuple[list[Row], float, str]:
    """Of the best peer: its rows, the multiple at which it is best, and both in short."""

    def validation(name: str) -> float:
        return min(row["validation"]["fvu"] for row in _at(libraries[name], best_multiple(libraries[name])))

    name = min((name for name in libraries if name != OURS.name), key=validation)
    multiple = best_multiple(libraries[name])
    return libraries[name], multiple, f"{LETTERS[name]}{multiple:g}"


def _fvus(libraries: dict[str, list[Row]]) -> str:
    """Ours, the best peer's, and by how much ours is lower."""
    rows, multiple, short = _best_peer(libraries)
    ours, theirs = _mean(libraries[OURS.name], 1.0, "test", "fvu"), _mean(rows, multiple, "test", "fvu")
    return f"**{ours:.4f}** · {theirs:.4f} {short} · {1 - ours / theirs:.1%}"


def _grafted(libraries: dict[str, list[Row]]) -> str:
    """KL and cross-entropy recovered, ours and the best peer's."""
    rows, multiple, _ = _best_peer(libraries)
    return f"**{_grafted_means(libraries[OURS.name], 1.0)}** · {_grafted_means(rows, multiple)}"


def _grafted_means(rows: list[Row], multiple: float, between: str = " · ") -> str:
    kl, recovered = (_mean(rows, multiple, "grafted", name) for name in ("kl", "ce_recovered"))
    return f"{kl:.3f}{between}{recovered:.2%}"


def _summary(rows: list[Row], multiple: float) -> str:
    """FVU with its range over seeds, unused, KL and recovered; nothing where nothing was measured."""
    found = _at(rows, multiple)
    if not found:
        return ""
    fvus = [row["test"]["fvu"] for row in found]
    spread = f" ({min(fvus):.4f}–{max(fvus):.4f})" if len(fvus) > 1 else ""
    grafted = _grafted_means(rows, multiple, " | ") if any("grafted" in row for row in found) else " | "
    unused = _mean(rows, multiple, "test", "unused")
    return f"{statistics.mean(fvus):.4f}{spread} | {unused:.1%} | {grafted}"


def main() -> None:
    """Print the tables of a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="JSON that quality/grid.py has written")
    parser.add_argument("--all", action="store_true", help="every library and size, one line each")
    chosen = parser.parse_args()
    rows = json.loads(chosen.file.read_text())["rows"]
    print("\n".join(all_rows(rows) if chosen.all else [*beside_best_peer(rows), *beside_all(rows)]))


if __name__ == "__main__":
    main()
