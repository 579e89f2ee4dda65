"""Hookpoints: names of places in a language model, and the patterns that stand for several of them.

A hookpoint is a module path under the base model (the model without its head) and means that module's output:
`layers.10` is the residual stream after block 10. `layers.10.input` is what block 10 receives, and `layers.10.output`
another way to write `layers.10`. A module that really has such a name (BERT's `encoder.layer.2.output`) wins.

Everything here is planning: it reads names and never runs the model, so a skeleton on the meta device is enough.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

SIDES = ("input", "output")


def base_model(model: nn.Module) -> nn.Module:
    """The model without its head, where module paths start; the model itself if it has none."""
    return getattr(model, "base_model", model)


def block_list(model: nn.Module) -> tuple[str, int]:
    """Path and length of the list of transformer blocks, e.g. `("layers", 12)`.

    It is the list with one entry for each layer that the text config counts. Of several (a vision tower may be as
    deep), the one that sits closest to the token embedding, an encoder before its decoder, the shallowest, the one with
    most parameters. Raises ValueError if there is none: some architectures use one block again and again.
    """
    base = base_model(model)
    depth = _num_hidden_layers(base)
    lists = {path: m for path, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0}
    fitting = {path: m for path, m in lists.items() if depth in (None, len(m))}
    if not fitting:
        raise ValueError(
            f"{type(base).__name__} must have a list of its {depth} transformer blocks to choose layers from, and has "
            f"none; name modules with --hookpoints instead ({_listed(name for name, _ in base.named_children())} …)"
        )
    embedding = _embedding_path(base)

    def rank(path: str) -> tuple[int, int, bool, int, int]:
        size = sum(parameter.numel() for parameter in fitting[path].parameters())
        near = _shared(path, embedding)
        return -len(fitting[path]), -near, path.startswith("decoder."), path.count("."), -size

    path = min(fitting, key=rank)
    return path, len(fitting[path])


def resolve_hookpoints(
    model: nn.Module, *, hookpoints: Sequence[str] = (), layers: Sequence[int] = (), layer_stride: int = 1
) -> list[str]:
    """The hookpoints that a user's choice stands for, in the model's order, each once.

    `hookpoints` are names or globs, in which `*`, `?` and `[0-5]` match within one dotted part: `layers.*.mlp`.
    `layers` are block numbers, `layer_stride` takes every n-th block from block 0; with nothing given, every block.
    Raises ValueError if a choice names nothing in this model, or if two ways to choose are mixed.
    """
    _check_choice(hookpoints, layers, layer_stride)
    base = base_model(model)
    if hookpoints:
        return _match_all(base, hookpoints)
    path, count = block_list(base)
    chosen = sorted(set(layers)) if layers else range(0, count, layer_stride)
    for layer in chosen:
        if not 0 <= layer < count:
            raise ValueError(
                f"--layers must be between 0 and {count - 1} (the model has {count} layers), got {layer}; "
                f"drop it, or leave --layers out to train every layer"
            )
    return [f"{path}.{layer}" for layer in chosen]


def locate(model: nn.Module, hookpoint: str) -> tuple[nn.Module, str]:
    """The module that a hookpoint names, and which side of it: "input" or "output".

    Raises ValueError if there is no such module.
    """
    base = base_model(model)
    parent, _, last = hookpoint.rpartition(".")
    for path, side in ((hookpoint, "output"), (parent, last)):
        if path and side in SIDES and (module := _submodule(base, path)) is not None:
            return module, side
    raise ValueError(_matches_nothing(base, hookpoint))


def _check_choice(hookpoints: Sequence[str], layers: Sequence[int], layer_stride: int) -> None:
    if layer_stride < 1:
        raise ValueError(f"--layer_stride must be at least 1, got {layer_stride}; 1 takes every layer, 2 every second")
    given = [
        name
        for name, used in (("--layers", layers), ("--layer_stride", layer_stride != 1), ("--hookpoints", hookpoints))
        if used
    ]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} must not be given together, as each chooses the layers; keep one")


def _match_all(base: nn.Module, patterns: Iterable[str]) -> list[str]:
    paths = _callable_paths(base)
    matches = [_match(paths, _without_base_prefix(base, pattern)) for pattern in patterns]
    for pattern, found in zip(patterns, matches, strict=True):
        if not found:
            raise ValueError(_matches_nothing(base, pattern))
    place = {path: index for index, path in enumerate(paths)}
    order = {name: (place[path], name == path) for found in matches for name, path in found.items()}
    return sorted(order, key=order.__getitem__)


def _match(paths: Sequence[str], pattern: str) -> dict[str, str]:
    """The hookpoints that one pattern stands for: {canonical name: module path}."""
    found = {path: path for path in paths if fits(path, pattern)}
    parent, _, side = pattern.rpartition(".")
    if side in SIDES:
        known = set(paths)
        for path in paths:
            if fits(path, parent) and f"{path}.{side}" not in known:
                found[f"{path}.input" if side == "input" else path] = path
    return found


def fits(path: str, pattern: str) -> bool:
    """Whether a glob covers a path, dotted part by dotted part."""
    parts, globs = path.split("."), pattern.split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


def _callable_paths(base: nn.Module) -> list[str]:
    """Paths of the modules that have an output: all but the root and the containers."""
    return [path for path, m in base.named_modules() if path and not isinstance(m, nn.ModuleList | nn.ModuleDict)]


def _without_base_prefix(base: nn.Module, pattern: str) -> str:
    """`model.layers.3`, as the model with its head calls it, is `layers.3` here."""
    prefix: str = getattr(base, "base_model_prefix", "")
    if not prefix or hasattr(base, prefix):
        return pattern
    return pattern.removeprefix(f"{prefix}.")


def _submodule(base: nn.Module, path: str) -> nn.Module | None:
    try:
        return base.get_submodule(path)
    except AttributeError:
        return None


def _num_hidden_layers(base: nn.Module) -> int | None:
    config: Any = getattr(base, "config", None)
    return None if config is None else getattr(config.get_text_config(), "num_hidden_layers", None)


def _embedding_path(base: nn.Module) -> str:
    """Path of the token embedding, "" if the model does not say which it is."""
    try:
        embedding = base.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return ""
    return next((path for path, module in base.named_modules() if module is embedding), "")


def _shared(path: str, other: str) -> int:
    """How many leading dotted parts two paths have in common."""
    pairs = list(zip(path.split("."), other.split("."), strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _matches_nothing(base: nn.Module, pattern: str) -> str:
    """The error for a pattern without a match: what comes near, and what the blocks are called."""
    paths = _callable_paths(base)
    if any(mark in pattern for mark in "*?["):
        paths = list(dict.fromkeys(re.sub(r"\b\d+\b", "*", path) for path in paths))
    near = difflib.get_close_matches(_without_base_prefix(base, pattern), paths, n=3, cutoff=0.5)
    hint = f"near names: {_listed(near)}" if near else f"the model starts with {_listed(paths[:3])}"
    return f"--hookpoints must name modules of {type(base).__name__}, and {pattern!r} matches nothing; {hint}" + (
        _block_hint(base)
    )


def _block_hint(base: nn.Module) -> str:
    try:
        path, count = block_list(base)
    except ValueError:
        return ""
    return f"; its {count} blocks are {path}.0 to {path}.{count - 1}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
