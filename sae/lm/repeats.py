"""Models that run the same blocks again and again, such as ALBERT: which run is which layer is asked of a forward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .forward import as_before, evaluating, without_cache


def runs_of_blocks(base: nn.Module, depth: int) -> list[tuple[str, int]]:
    """The layers of a model whose blocks run several times in a forward, in order: path of a block, number of its run
    from 0.

    A forward of 2 x 3 tokens is watched, on the meta device if the weights are there. The blocks are modules of one
    class, in lists, that run `depth` times in all. Of classes that hold each other the outermost counts. Empty for a
    model of another kind, or one that cannot run there.
    """
    order = next(filter(None, _orders(base)), [])
    kinds: dict[type[nn.Module], list[str]] = {}
    for path in order:
        kinds.setdefault(type(base.get_submodule(path)), []).append(path)
    fitting = [paths for paths in kinds.values() if len(paths) == depth]
    layers = min(fitting, key=lambda paths: paths[0].count("."), default=[])
    return [(path, layers[:index].count(path)) for index, path in enumerate(layers)]


def run_once_in_turn(base: nn.Module, path: str) -> bool | None:
    """Whether the entries of the list at `path` run once each in a forward, one after the other.

    None for a model that cannot run where it is, as some cannot on the meta device.
    """
    entries = [f"{path}.{index}" for index in range(len(base.get_submodule(path)))]  # type: ignore[arg-type]
    order = next(filter(None, _orders(base)), None)
    return None if order is None else [at for at in order if at in entries] == entries


def _orders(base: nn.Module) -> Iterator[list[str]]:
    """The `_order` with and without a cache: what runs on the meta device differs."""
    yield _order(base, {})
    yield _order(base, without_cache(base))


def _order(base: nn.Module, options: dict[str, bool]) -> list[str]:
    """Paths of what is in lists of modules, as a forward runs them; none if it fails."""
    order: list[str] = []
    try:
        with as_before(base), evaluating(base), _watched(base, order), torch.no_grad():
            base(_tokens(base), **options)
    except Exception:  # whatever a forward of any architecture may raise: it is told when it is run in earnest
        return []
    return order


@contextmanager
def _watched(base: nn.Module, order: list[str]) -> Iterator[None]:
    """Meanwhile the paths of what is in lists of modules are added to `order` as it runs."""
    lists = [(path, module) for path, module in base.named_modules() if isinstance(module, nn.ModuleList)]
    entries = [(f"{path}.{index}", entry) for path, module in lists for index, entry in enumerate(module)]

    def noted(path: str) -> Any:
        return lambda module, args, kwargs: order.append(path)

    handles = [entry.register_forward_pre_hook(noted(path), with_kwargs=True) for path, entry in entries]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tokens(base: nn.Module) -> Tensor:
    """2 x 3 tokens, where the first weight is: a skeleton reads what is on the meta device."""
    return torch.full((2, 3), 3, device=next(base.parameters()).device)
