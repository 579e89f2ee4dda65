"""Dictionaries into another library's format."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from sae.dictionary.spec import Saved
from sae.formats import FORMATS
from sae.formats.cross_layer import separated
from sae.formats.format import About, Format
from sae.storage.files import is_inside

_OURS = "eleuther"
"""Format that says ties by target. Others get a decoder for each pair of layers."""


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
    decoders = _Decoders(dictionaries)
    for hookpoint, read in dictionaries.items():
        if not is_inside(hookpoint):
            raise ValueError(f"hookpoint must be a module path, got {hookpoint!r}")
        bare = hookpoint.rpartition("/")[2]
        saved = read()
        if saved.spec.cfg.tied_by_target and each is not FORMATS[_OURS]:
            saved = separated(saved, decoders.written_by(hookpoint, saved))
        each.write(folder / each.folder_of(hookpoint), saved, about._replace(hookpoint=bare))
    if each.finish is not None:
        each.finish(folder, list(dictionaries), about)


class _Decoders:
    """W_dec of the layers of cross-layer transcoders that are tied by target, each read once."""

    def __init__(self, dictionaries: Mapping[str, Callable[[], Saved]]) -> None:
        self._dictionaries = dictionaries
        self._found: dict[str, Tensor] = {}

    def written_by(self, hookpoint: str, saved: Saved) -> list[Tensor]:
        """W_dec of the places that a layer writes. Raises ValueError for one that is missing or does not fit."""
        group = hookpoint.rpartition("/")[0]
        names = [f"{group}/{place}".lstrip("/") for place in saved.spec.writes]
        if missing := [name for name in names if name not in self._dictionaries]:
            raise ValueError(
                f"a cross-layer transcoder whose decoders are tied by target must be whole, got {hookpoint} without "
                f"{', '.join(missing)}; name the folder of all layers"
            )
        for name in names:
            if name not in self._found:
                self._found[name] = self._dictionaries[name]().tensors["W_dec"]
            shape = self._found[name].shape
            if shape != saved.tensors["W_dec"].shape:
                raise ValueError(f"{name} must have W_dec of {hookpoint}'s shape, got {tuple(shape)}; it is of another")
        return [self._found[name] for name in names]


def unsaid(name: str, saved: Saved) -> str:
    """The nested reconstructions that the format has no word for; empty if it says them or there are none."""
    cfg, by_threshold = saved.spec.cfg, saved.spec.selection in ("batchtopk", "jumprelu")
    if name == _OURS or (name == "dictionary-learning" and by_threshold and cfg.prefixes):
        return ""
    levels = {"prefixes": cfg.prefixes, "budgets": cfg.budgets}
    return ", ".join(f"{option} {' '.join(map(str, ends))}" for option, ends in levels.items() if ends)


def says_topk(name: str, saved: Saved) -> bool:
    """Whether the format can say that the k largest stay."""
    only_thresholds = ("circuit-tracer", "gemma-scope-2")
    return name not in only_thresholds and not (saved.spec.cfg.transcode and name == "saelens")
