"""Tables on the terminal, whose names stay whole however long they are."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sae.report.html import plain

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text
else:  # slow to import
    Table = Text = Any

_ANY_WIDTH = 10_000


def show_rows(
    title: str, names: Sequence[str], headings: Sequence[str], rows: Iterable[Sequence[str]], *, once: bool = False
) -> None:
    """Print rows of names, which are text and no markup, and of numbers under `headings`.

    `once`: a first name that the row before has too is left out, and a line stands above each new one.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, "table.title"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    before: str | None = None
    for first, *others in rows:
        if once and before not in (None, first):
            table.add_section()
        cells = ["" if once and first == before else first, *others]
        before = first
        table.add_row(*map(text, cells))
    show(table, names=len(names))


def text(cell: str) -> Text:
    """A stranger's text for a table: rich reads a `str` as markup, takes words in brackets away, or raises."""
    from rich.text import Text

    return Text(plain(cell))


def show(table: Table, *, names: int = 1) -> None:
    """Print a table whose first columns, `names` of them, hold names.

    Where it is wider than the terminal, the names of each row stand on a line of their own above its numbers. What is
    no terminal, such as a file, is as wide as the table.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=_ANY_WIDTH)).maximum
    if needed <= console.width or not console.is_terminal:
        Console(width=max(needed, console.width)).print(table)
        return
    headings = [_text(column.header) for column in table.columns]
    rows = [list(map(_text, row)) for row in zip(*(column.cells for column in table.columns), strict=True)]
    widths = [max(map(len, column)) for column in zip(headings[names:], *(row[names:] for row in rows), strict=True)]
    lines = [_text(table.title or ""), " / ".join(headings[:names]), _numbers(headings[names:], widths)]
    for row in rows:
        lines += [" / ".join(filter(None, row[:names])), _numbers(row[names:], widths)]
    for line in filter(str.strip, lines):
        console.print(Text(line), soft_wrap=True)


def _numbers(cells: list[str], widths: list[int]) -> str:
    return "  " + "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def _text(cell: Any) -> str:
    return str(getattr(cell, "plain", cell))
