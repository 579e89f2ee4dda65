"""An index as files: static pages that open without a server, and what other tools import."""

import base64
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sae.storage.files import whole_folder, write_atomically

from . import circuit_tracer, neuronpedia
from .notes import Notes
from .payload import about_index, about_latent, about_related, tokens_in
from .plan import EXPORTS
from .server import PAGE, packed_columns
from .store import Index, Place

SHARD = 16
"""Latents in a file of an export."""
TOP, OF_EACH_FIFTH = 12, 3
"""Contexts that are exported of each latent."""
_MODULES = ("dom.js", "data.js", "charts.js", "list.js", "latent.js", "try.js", "app.js")
"""The page's modules, each after those that it needs."""
_FORMATS = dict(zip(EXPORTS, (neuronpedia.write, circuit_tracer.write), strict=True))


def export(index: Index, folder: Path, what: str, notes: Notes, latents: Sequence[int] = ()) -> None:
    """Write static pages into a new or empty folder, or the format of `EXPORTS` that is asked for (`what`).

    It is there when it is whole. Raises ValueError for a latent that no place has.
    """
    index.check_latents(latents)
    with whole_folder(folder) as partial:
        _FORMATS.get(what, write_pages)(index, partial, notes, sorted(set(latents)))


def write_pages(index: Index, folder: Path, notes: Notes, latents: Sequence[int]) -> None:
    """Pages that open from a disk: no module and no request, which browsers refuse there, but scripts with data."""
    data, used = folder / "data", set[int]()
    data.mkdir()
    for number, place in enumerate(index.places.values()):
        _write_data(data, f"place{number}", base64.b64encode(packed_columns(place)).decode())
        for shard, payload in _shards(place, latents):
            _write_data(data, f"place{number}-{shard}", payload)
            used |= {token for page in payload.values() for token in tokens_in(page["latent"])}
        used |= _tokens_of_list(place)
    _write_data(data, "vocabulary", {str(token): index.token(token) for token in sorted(used)})
    _write_data(data, "notes", [notes.of(name) for name in index.places])
    exported = {"exported": list(latents)} if latents else {}
    _write_data(data, "index", about_index(index) | exported | {"shard": SHARD})
    write_atomically(folder / "style.css", (PAGE / "style.css").read_bytes())
    write_atomically(folder / "app.js", bundled().encode())
    write_atomically(folder / "index.html", _document().encode())


def _shards(place: Place, latents: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The pages of some latents, by the number of the file that they go into."""
    found: dict[int, dict[str, Any]] = {}
    for latent in latents or range(place.num_latents):
        if latent < place.num_latents:
            page = about_latent(place[latent], top=TOP, of_each_fifth=OF_EACH_FIFTH)
            found.setdefault(latent // SHARD, {})[str(latent)] = {
                "latent": page,
                "related": about_related(place[latent]),
            }
    yield from found.items()


def _tokens_of_list(place: Place) -> set[int]:
    columns = [place.column("share_tokens")[:, 0], place.column("up_tokens")[:, :3], place.column("down_tokens")[:, 0]]
    return {int(token) for column in columns for token in set(column.ravel().tolist())}


def _write_data(folder: Path, name: str, value: Any) -> None:
    text = json.dumps(value, separators=(",", ":"))
    content = f"(window.saeData=window.saeData||{{}})[{json.dumps(name)}]={text};\n"
    write_atomically(folder / f"{name}.js", content.encode())


def bundled() -> str:
    """The page's modules as one script, each a function that returns what it exports."""
    return "window.saeExport=true;\n(() => {\n" + "\n".join(map(_as_function, _MODULES)) + "\n})();\n"


def _as_function(name: str) -> str:
    text = (PAGE / name).read_text(encoding="utf-8")
    text = re.sub(r'^import (\{.*?\}) from "\./(\w+)\.js";$', r"const \1 = module_\2;", text, flags=re.MULTILINE)
    exported = re.findall(r"^export (?:async )?(?:function|const) (\w+)", text, flags=re.MULTILINE)
    text = re.sub(r"^export ", "", text, flags=re.MULTILINE)
    return f"const module_{name.removesuffix('.js')} = (() => {{\n{text}return {{ {', '.join(exported)} }};\n}})();"


def _document() -> str:
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    policy = "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src data:; base-uri 'none'"
    meta = f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">'
    script = '<script type="module" src="app.js">'
    return text.replace('<meta charset="utf-8">', meta).replace(script, '<script defer src="app.js">')
