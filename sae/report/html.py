"""A page that is one HTML file: it needs no network and runs no script, and strangers' names in it are text."""

import base64
import html
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

_LONGEST = 10_000
"""Characters of a text that the page shows at most; only a text made to fill the page is longer."""
_STYLE = """
:root { color-scheme: light dark; --text: #222; --page: #fff; --line: #ddd; }
@media (prefers-color-scheme: dark) { :root { --text: #ddd; --page: #181a1f; --line: #3a3d45; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; color: var(--text);
  background: var(--page); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid var(--line); text-align: right; }
th { vertical-align: bottom; min-width: 3rem; }
td, .word { white-space: nowrap; }
th.name, td.name, td.text { text-align: left; }
td.text { white-space: normal; }
img { max-width: 100%; background: #fff; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """The file, of `parts` that are HTML already."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def plain(text: object, most: int = 200) -> str:
    """A stranger's text without what a terminal or a page would obey, and at most so many characters of it."""
    return "".join(character if character.isprintable() else "�" for character in str(text))[:most]


def facts(pairs: Mapping[str, object]) -> str:
    """An HTML table of names and texts; a text is broken at spaces and slashes only."""
    rows = [f"<tr><td class=name>{_escaped(name)}</td><td class=text>{_words(text)}</td></tr>"
            for name, text in pairs.items()]  # fmt: skip
    return _wide(rows)


def table(headings: Sequence[str], rows: Iterable[Iterable[Any]], *, names: int, numbers: Collection[str] = ()) -> str:
    """An HTML table whose first `names` columns are text.

    A value that all rows share is a sentence before the table, and no column; the columns `numbers` always stay.
    """
    found = [[str(each) for each in row] for row in rows]
    common = _common(headings, found, numbers)
    kept = [index for index, heading in enumerate(headings) if heading not in common]

    def line(tag: str, cells: Sequence[str]) -> str:
        written = [f"<{tag}{' class=name' if at < names else ''}>{_escaped(cells[at])}</{tag}>" for at in kept]
        return f"<tr>{''.join(written)}</tr>"

    said = ", ".join(
        f"{_escaped(heading)} <span class=word>{_escaped(cell)}</span>" for heading, cell in common.items()
    )
    return f"<p>In all rows: {said}.</p>\n" * bool(said) + _wide(
        [line("th", headings), *(line("td", row) for row in found)]
    )


def _common(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str]) -> dict[str, str]:
    """Values that several rows share, by the column's heading; empty if that were all columns."""
    found = {
        heading: rows[0][at]
        for at, heading in enumerate(headings)
        if len(rows) > 1 and heading not in numbers and len({row[at] for row in rows}) == 1
    }
    return found if len(found) < len(headings) else {}


def _wide(rows: Iterable[str]) -> str:
    """A table that scrolls sideways where the window is narrower."""
    return "<div class=wide><table>\n" + "\n".join(rows) + "\n</table></div>"


def _escaped(text: object) -> str:
    return html.escape(plain(text, _LONGEST))


def _words(text: object) -> str:
    """The text as words that stay whole, with a place to break after each slash."""
    words = [re.split(r"(?<=[/\\])", word) for word in plain(text, _LONGEST).split(" ")]
    spans = [[f"<span class=word>{html.escape(part)}</span>" for part in parts] for parts in words]
    return " ".join("<wbr>".join(parts) for parts in spans)


def picture(name: str, image: bytes) -> str:
    """A PNG inside the page."""
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
