"""Hookpoints: names of places in a language model, and the patterns that stand for several of them.

A hookpoint is a module path under the base model (the model without its head) and means that module's output:
`layers.10` is the residual stream after block 10. `layers.10.input` is what block 10 receives, and `layers.10.output`
another way to write `layers.10`. A module that really has such a name (BERT's `encoder.layer.2.output`) wins. The first
version of EleutherAI's library counted hidden states: its `layer_10.pt` is what block 10 receives.

A block that runs several times in a forward, as ALBERT's one does, is another layer each time. `.call2` is its third
run, counted from 0: `encoder.albert_layer_groups.0.call2`, and `….call2.input`. Without it the first run is meant.

A model that reads more than text holds a text model. Paths of that part start there, so that a block has one name
whichever class holds the weights. `layers.10` is also `language_model.layers.10`, which means the same.

Everything here is planning: a skeleton on the meta device is enough. It reads names. A model whose blocks are not one
list with an entry for each layer is run with a few tokens. That shows which block is which layer.
"""

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn

from .pair import MODELS, model_at, models_in, of_side, side_of
from .repeats import run_once_in_turn, runs_of_blocks
from .wrappers import base_model

SIDES = ("input", "output")
ARROW = "->"
"""Between the two hookpoints of a name A->B: what is read, and what is replaced."""
WRAPPERS = ("model", "language_model", "text_model")
"""What classes that hold a text model call it: leading parts of a path that a class without the wrapper lacks."""
_HIDDEN_STATE = re.compile(r"layer_(\d+)(\.pt)?")
_CALL = re.compile(r"call(\d{1,4})")
"""A run of a module, of several in a forward."""


class HookSite(NamedTuple):
    """What a hookpoint names: a module, a side of it, and one of its runs."""

    module: nn.Module
    side: str
    """What passes there: its "input" or its "output"."""
    call: int = 0
    """The run of the module in a forward, counted from 0."""


def block_list(model: nn.Module) -> tuple[str, int]:
    """Path and length of the list of transformer blocks, e.g. `("layers", 12)`.

    It is the list with one entry for each layer that the text config counts, or for each two where a block has two
    sublayers. Several lists may fit (a vision tower may be as deep). Then it is the one closest to the token embedding,
    an encoder before its decoder, the shallowest, the one with most parameters. A block may be spread over lists side
    by side (attentions, norms, feed-forwards). Then it is the list whose entry puts out the residual stream. A list of
    sublayers within a block may be as long by coincidence: its entries run more than once. Raises ValueError if there
    is none: some architectures use one block again and again. So it does for several, if nothing says which is meant.
    """
    base = base_model(model)
    depth = _num_hidden_layers(base)
    if depth is None and (part := part_that_reads(base)):
        path, count = block_list(base.get_submodule(part))
        return f"{part}.{path}", count
    lists = {path: m for path, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0}
    fitting = {path: m for path, m in lists.items() if depth in (None, len(m)) or depth == _sublayers(m)}
    if not fitting:
        raise ValueError(
            f"{type(base).__name__} must have a list of its {depth} transformer blocks to choose layers from, and has "
            f"none; name modules with --hookpoints instead ({', '.join(name for name, _ in base.named_children())} …)"
        )
    if depth is None and hasattr(base, "config"):
        _check_one_stack(base, fitting)
    embedding = embedding_path(base)

    def rank(path: str) -> tuple[int, int, bool, int, int]:
        size = sum(parameter.numel() for parameter in fitting[path].parameters())
        near = _shared(path, embedding)
        return -len(fitting[path]), -near, "decoder" in path.split("."), path.count("."), -size

    path = _end_of_block(base, min(fitting, key=rank), fitting)
    inside = any(path.startswith(f"{other}.") for other in lists)
    by_chance = depth is not None and (inside or len(fitting[path]) != depth)
    ran = run_once_in_turn(base, path) if by_chance else True
    if ran is False or (ran is None and inside):  # a skeleton that cannot run is taken at its word
        raise ValueError(
            f"{type(base).__name__} must have a list of its {depth} transformer blocks to choose layers from, but the "
            f"entries of {path} do not run once each, one after the other; name modules with --hookpoints instead"
        )
    return path, len(fitting[path])


def resolve_hookpoints(
    model: nn.Module, *, hookpoints: Sequence[str] = (), layers: Sequence[int] = (), layer_stride: int = 1
) -> list[str]:
    """The hookpoints that a user's choice stands for, in the model's order, each once.

    Of two models a choice stands for places in both, unless it begins with `a:` or `b:`.

    Args:
        model: Model of transformers, with weights or without, or a pair of them.
        hookpoints: Names or globs, in which `*`, `?` and `[0-5]` match within one dotted part: `layers.*.mlp`.
        layers: Numbers of blocks, from 0.
        layer_stride: Take every n-th block, from block 0.

    Returns:
        Names of hookpoints; without a choice the output of every block.

    Raises:
        ValueError: If a choice names nothing in this model, or if two ways to choose are mixed.
    """
    _check_choice(hookpoints, layers, layer_stride)
    found: list[str] = []
    for side, one in models_in(model).items():
        own = [name.removeprefix(side) for name in hookpoints if not side or side_of(name) in ("", side)]
        if hookpoints and not own:
            raise ValueError(
                f"--hookpoints must name a place in both models, and {' '.join(hookpoints)} names none of {side}; "
                f"leave out {' and '.join(MODELS)} for places in both, or add one with {side}"
            )
        with of_side(side):
            found += [side + name for name in _resolved(one, own, layers, layer_stride)]
    return found


def _resolved(model: nn.Module, hookpoints: Sequence[str], layers: Sequence[int], layer_stride: int) -> list[str]:
    """What a choice stands for in a single model."""
    base = base_model(model)
    if hookpoints:
        return _match_all(base, hookpoints)
    names = block_names(base)
    chosen = sorted(set(layers)) if layers else range(0, len(names), layer_stride)
    for layer in chosen:
        if not 0 <= layer < len(names):
            raise ValueError(
                f"--layers must be between 0 and {len(names) - 1} (the model has {len(names)} layers), got {layer}; "
                f"drop it, or leave --layers out to train every layer"
            )
    return [names[layer] for layer in chosen]


def block_names(model: nn.Module) -> list[str]:
    """The hookpoint of each layer's output, in order.

    They are the entries of the `block_list`, or the runs of blocks that run several times. Raises ValueError if there
    is neither.
    """
    return [side + name for side, one in models_in(model).items() for name in _block_names(one)]


def _block_names(model: nn.Module) -> list[str]:
    base = base_model(model)
    text = _text_path(base)
    try:
        path, count = block_list(base)
    except ValueError:
        depth = _num_hidden_layers(base)
        runs = runs_of_blocks(base, depth) if depth else []
        if not runs:
            raise
        return [_named(_short(text, path), "output", call) for path, call in runs]
    return [_short(text, f"{path}.{layer}") for layer in range(count)]


def canonical(model: nn.Module, hookpoint: str) -> str:
    """The name by which `resolve_hookpoints` calls a hookpoint, however it is spelled.

    Raises ValueError if there is no such module.
    """
    module, side, call = locate(model, hookpoint)
    base = base_model(model)
    path = next(path for path, each in base.named_modules() if each is module)
    return _named(_short(_text_path(base), path), side, call)


def canonical_ends(model: nn.Module, name: str) -> str:
    """The `canonical` name of a hookpoint, or of both in A->B."""
    return ARROW.join(canonical(model, end.strip()) for end in name.split(ARROW))


def locate(model: nn.Module, hookpoint: str) -> HookSite:
    """The module that a hookpoint names, which side of it, and which of its runs.

    Args:
        model: Model of transformers, or a pair of them.
        hookpoint: Name of a hookpoint.

    Returns:
        The module, "input" or "output", and the number of its run in a forward, from 0.

    Raises:
        ValueError: If there is no such module.
    """
    model, hookpoint = model_at(model, hookpoint)
    base = base_model(model)
    if (hidden_state := _HIDDEN_STATE.fullmatch(hookpoint)) and _submodule(base, hookpoint) is None:
        hookpoint = f"{_number(block_names(model), int(hidden_state[1]))}.input"
    for name in _spellings(base, hookpoint):
        for path, side, call in _readings(name):
            if path and (module := _submodule(base, path)) is not None:
                return HookSite(module, side, call)
    raise ValueError(_matches_nothing(base, hookpoint))


def _number(names: Sequence[str], number: int) -> str:
    """The name of that number, or what it would be called if there were as many."""
    return names[number] if number < len(names) else f"{names[0].rpartition('.')[0]}.{number}"


def _named(path: str, side: str, call: int) -> str:
    """The name of a place: module path, which run, which side, where they are not the first and the output."""
    return f"{path}{f'.call{call}' if call else ''}{'.input' if side == 'input' else ''}"


def _readings(name: str) -> list[tuple[str, str, int]]:
    """What a name may mean, first choice first: path of a module, side, run. A module that is called so wins."""
    parent, _, last = name.rpartition(".")
    found = [(name, "output", 0)]
    if last in SIDES:
        found.append((parent, last, 0))
    outer, _, inner = (parent if last in SIDES else name).rpartition(".")
    if run := _CALL.fullmatch(inner):
        found.append((outer, last if last in SIDES else "output", int(run[1])))
    return found


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
    matches = [_first_match(base, paths, pattern) for pattern in patterns]
    for pattern, found in zip(patterns, matches, strict=True):
        if not found:
            raise ValueError(_matches_nothing(base, pattern))
    order, text = {path: index for index, path in enumerate(paths)}, _text_path(base)
    chosen = dict.fromkeys(each for match in matches for each in match)
    in_order = sorted(chosen, key=lambda each: (order[each[0]], each[2], each[1] == "output"))
    return list(dict.fromkeys(_named(_short(text, path), side, call) for path, side, call in in_order))


def _first_match(base: nn.Module, paths: Sequence[str], pattern: str) -> list[tuple[str, str, int]]:
    """What a pattern stands for, in the first of its spellings that stands for something."""
    matches = (_match(paths, spelling) for spelling in _spellings(base, pattern))
    return next(filter(None, matches), [])


def _match(paths: Sequence[str], pattern: str) -> list[tuple[str, str, int]]:
    """The places that one pattern stands for: module path, side, run."""
    known = set(paths)
    found: list[tuple[str, str, int]] = []
    for parent, side, call in _readings(pattern):
        ending = pattern[len(parent) :]
        fitting = [path for path in paths if fits(path, parent)]
        found += [(path, side, call) for path in fitting if not ending or path + ending not in known]
    return found


def fits(path: str, pattern: str) -> bool:
    """Whether a glob covers a path, dotted part by dotted part; in both of two models, unless it names one."""
    side = side_of(path)
    if side_of(pattern) not in ("", side):
        return False
    parts, globs = path.removeprefix(side).split("."), pattern.removeprefix(side).split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


def _callable_paths(base: nn.Module) -> list[str]:
    """Paths of the modules that have an output: all but the root and the containers."""
    return [path for path, m in base.named_modules() if path and not isinstance(m, nn.ModuleList | nn.ModuleDict)]


def _spellings(base: nn.Module, name: str) -> list[str]:
    """The name, as it may be written in this class: under the text model, or without what wraps it in another class."""
    text = _text_path(base)
    inside = f"{text}.{name}" if text else name
    shorter = [name]
    while shorter[-1].partition(".")[0] in (*WRAPPERS, getattr(base, "base_model_prefix", "")) and "." in shorter[-1]:
        shorter.append(shorter[-1].partition(".")[2])
    return list(dict.fromkeys([inside, *shorter, *(f"{text}.{each}" for each in shorter if text)]))


def _short(text: str, name: str) -> str:
    """A full path as it is called: from the text model on."""
    return name.removeprefix(f"{text}.") if text else name


def _text_path(base: nn.Module) -> str:
    """Path of the text model within one that holds more, "" where the model is that itself.

    It is the outermost module above the token embedding with the config of the text. Its part without a head is taken,
    or its only part.
    """
    config, embedding = getattr(base, "config", None), embedding_path(base).split(".")
    if config is None or getattr(config, "is_encoder_decoder", False):
        return ""
    above = [".".join(embedding[:depth]) for depth in range(len(embedding))]
    kind = type(config.get_text_config())
    of_text = [path for path in above if type(getattr(base.get_submodule(path), "config", None)) is kind]
    path = next((path for path in of_text if not _has_own_head(base.get_submodule(path))), "")
    if path and (headless := base_model(base.get_submodule(path))) is not base.get_submodule(path):
        path = next(inside for inside, module in base.named_modules() if module is headless)
    while path and (inner := _only_part(base, path)) in above[1:]:
        path = inner
    return path


def _only_part(base: nn.Module, path: str) -> str:
    """Path of the one module that another holds, "" if it holds several."""
    parts = [name for name, _ in base.get_submodule(path).named_children()]
    return f"{path}.{parts[0]}" if len(parts) == 1 else ""


def _has_own_head(module: nn.Module) -> bool:
    return any(path.endswith("head") for path, _ in module.named_children())


def _submodule(base: nn.Module, path: str) -> nn.Module | None:
    try:
        return base.get_submodule(path)
    except AttributeError:
        return None


def _num_hidden_layers(base: nn.Module) -> int | None:
    config: Any = getattr(base, "config", None)
    depth = None if config is None else getattr(config.get_text_config(), "num_hidden_layers", None)
    return depth if isinstance(depth, int) else None  # LXMERT's is a dictionary


def part_that_reads(base: nn.Module) -> str:
    """Path of the one model, of several in another, that reads token ids; "" if there is not one alone."""
    parts = [(name, part) for name, part in base.named_children() if hasattr(part, "config")]
    reading = [name for name, part in parts if "input_ids" in inspect.signature(part.forward).parameters]
    return reading[0] if len(reading) == 1 else ""


def embedding_path(base: nn.Module) -> str:
    """Path of the token embedding, "" if the model does not say which it is."""
    try:
        embedding = base.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return ""
    return next((path for path, module in base.named_modules() if module is embedding), "")


def _sublayers(blocks: nn.ModuleList) -> int:
    """How many layers the blocks have in all, where each holds a list of sublayers that are as many in each."""
    inner = {len(part) for block in blocks for part in block.children() if isinstance(part, nn.ModuleList)}
    return len(blocks) * inner.pop() if len(inner) == 1 else 0


def _check_one_stack(base: nn.Module, lists: Mapping[str, nn.ModuleList]) -> None:
    """Raises ValueError for stacks in several parts of the model, if its config does not say how deep the text's is."""
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    if len({path.rpartition(".")[0] for path in outer}) > 1:
        raise ValueError(
            f"{type(base).__name__} has several stacks of blocks, and its config does not say which is the residual "
            f"stream of the tokens; name one with --hookpoints ({', '.join(f'{path}.*' for path in outer)})"
        )


def _end_of_block(base: nn.Module, path: str, lists: Mapping[str, nn.ModuleList]) -> str:
    """The list itself, or the last of those that make up a block together: entries without a norm, and norms beside.

    Raises ValueError where the norms come first in each part, so that no module puts out the residual stream.
    """
    parent = path.rpartition(".")[0]
    beside = [other for other in lists if other.rpartition(".")[0] == parent and len(lists[other]) == len(lists[path])]
    norms = [other for other in beside if all(_is_norm(each) for each in lists[other])]
    if not norms or any(_is_norm(each) for each in lists[path].modules()):
        return path
    if getattr(getattr(base, "config", None), "pre_norm", False):
        raise ValueError(
            f"{type(base).__name__} with pre_norm has no module that puts out its residual stream; name modules with "
            f"--hookpoints instead ({', '.join(f'{other}.*' for other in beside)})"
        )
    return norms[-1]


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _shared(path: str, other: str) -> int:
    """How many leading dotted parts two paths have in common."""
    pairs = list(zip(path.split("."), other.split("."), strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _matches_nothing(base: nn.Module, pattern: str) -> str:
    """The error for a pattern without a match: what comes near, and what the blocks are called."""
    paths = _callable_paths(base)
    if any(mark in pattern for mark in "*?["):
        paths = list(dict.fromkeys(re.sub(r"\b\d+\b", "*", path) for path in paths))
    near = difflib.get_close_matches(_spellings(base, pattern)[-1], paths, n=3, cutoff=0.5)
    hint = f"near names: {', '.join(near)}" if near else f"the model starts with {', '.join(paths[:3])}"
    return f"--hookpoints must name modules of {type(base).__name__}, and {pattern!r} matches nothing; {hint}" + (
        _block_hint(base)
    )


def _block_hint(base: nn.Module) -> str:
    try:
        path, count = block_list(base)
    except ValueError:
        return ""
    path = _short(_text_path(base), path)
    return f"; its {count} blocks are {path}.0 to {path}.{count - 1}"
