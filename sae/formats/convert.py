"""Dictionaries into another library's format."""

from collections.abc import Callable, Mapping
from pathlib import Path

from sae.dictionary.spec import Saved
from sae.formats import FORMATS
from sae.formats.format import About, Format
from sae.storage.files import is_inside


def writable(name: str) -> Format:
    """The format of that name. Raises ValueError, listing those that can be written, if it cannot."""
    names = [each.name for each in FORMATS.values() if each.write is not None]
    if name not in names:
        raise ValueError(f"format must be one of {', '.join(names)}, got {name!r}; choose one of them")
    return FORMATS[name]


def write_one(folder: Path, saved: Saved, name: str, about: About | None = None) -> None:
    """Write one dictionary into `folder` itself. Raises ValueError for what the format cannot say."""
    each = writable(name)
    assert each.write is not None
    about = about or About()
    each.write(folder, saved, about)
    if each.finish is not None:
        each.finish(folder, [next(iter(saved.spec.writes), about.hookpoint)], about)


def write_set(folder: Path, dictionaries: Mapping[str, Callable[[], Saved]], name: str, about: About) -> None:
    """Write dictionaries by hookpoint, each read when it is its turn, below `folder`.

    Raises ValueError for what the format cannot say.
    """
    each = writable(name)
    assert each.write is not None
    for hookpoint, read in dictionaries.items():
        if not is_inside(hookpoint):
            raise ValueError(f"hookpoint must be a module path, got {hookpoint!r}")
        bare = hookpoint.rpartition("/")[2]
        each.write(folder / each.folder_of(hookpoint), read(), about._replace(hookpoint=bare))
    if each.finish is not None:
        each.finish(folder, list(dictionaries), about)


def says_topk(name: str, saved: Saved) -> bool:
    """Whether the format can say that the k largest stay."""
    only_thresholds = ("circuit-tracer", "gemma-scope-2")
    return name not in only_thresholds and not (saved.spec.cfg.transcode and name == "saelens")
