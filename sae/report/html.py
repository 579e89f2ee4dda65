"""A page that is one HTML file: it needs no network and runs no script, and strangers' names in it are text."""

import base64
import html
from collections.abc import Iterable
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th.name, td.name { text-align: left; overflow-wrap: anywhere; }
img { max-width: 100%; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """The file, of `parts` that are HTML already."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def plain(text: object) -> str:
    """A stranger's text without what a terminal or a page would obey."""
    return "".join(character if character.isprintable() else "�" for character in str(text))[:200]


def table(headings: Iterable[str], rows: Iterable[Iterable[Any]], *, names: int) -> str:
    """An HTML table whose first `names` columns are text."""

    def line(tag: str, cells: Iterable[Any]) -> str:
        written = [
            f"<{tag}{' class=name' if index < names else ''}>{html.escape(plain(each))}</{tag}>"
            for index, each in enumerate(cells)
        ]
        return f"<tr>{''.join(written)}</tr>"

    return "<table>\n" + "\n".join([line("th", headings), *(line("td", row) for row in rows)]) + "\n</table>"


def picture(name: str, image: bytes) -> str:
    """A PNG inside the page."""
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
