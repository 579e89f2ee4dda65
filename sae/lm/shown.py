"""Where a module's values hold the residual stream, by what the model itself shows as its hidden states."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .forward import as_before, device_of, evaluating, without_cache
from .hookpoints import HookSite, locate
from .layout import Layout, received, tensors_in
from .load import vocab_size
from .wrappers import base_model, eagerly

_LENGTHS = (3, 5)
"""Numbers of tokens of the forwards: what is the same for both belongs to the model."""


class _Watched(NamedTuple):
    """What one forward showed."""

    values: dict[HookSite, list[Tensor]]
    """The tensors that pass each site."""
    states: list[Tensor]
    """The hidden states that the model returned, the last one at the end."""
    last: Tensor | None
    """The last hidden states of all tokens."""


def layouts_shown(model: nn.Module, hookpoints: Sequence[str], seq: int = 0) -> dict[str, Layout]:
    """The layout of each hookpoint of which the model's own hidden states leave no doubt.

    Two forwards of a few tokens are run. A hookpoint carries one vector for each token, and perhaps more before or
    after them. That is so if one of the hidden states is a part of what passes, in one way only. Several tensors of one
    shape are one state if the last hidden states are as wide as all of them. The last block's output is not shown, as a
    norm comes after it. It is read as that of the blocks beside it, where these agree. A model that pads short
    sequences shows nothing in them. It is asked at `seq` tokens too, for what passes there without more.
    """
    base = base_model(model)
    sites = {name: locate(base, name)._replace(call=0) for name in hookpoints}
    beside = {name: _siblings(base, site) for name, site in sites.items()}
    watched = {site for name in hookpoints for site in (sites[name], *beside[name])}
    one, other = (_fitting_in(base, length, watched) for length in _LENGTHS)
    alone = {
        site: {layout for layout in found if not layout.before and not layout.after}
        for site, found in (_fitting_in(base, seq, watched) if seq > max(_LENGTHS) else {}).items()
    }
    fitting = {site: one.get(site, set()) & other.get(site, set()) or alone.get(site, set()) for site in watched}
    layouts = {}
    for name, site in sites.items():
        candidates = fitting[site] or set().union(*(fitting[each] for each in beside[name]))
        if len(candidates) == 1:
            (layouts[name],) = candidates
    return layouts


def _fitting_in(base: nn.Module, length: int, sites: Iterable[HookSite]) -> dict[HookSite, set[Layout]]:
    """The layouts that fit what a forward of 2 x `length` tokens shows at each site."""
    shown = _forward(base, length, sites)
    if shown is None:
        return {}
    return {site: _fitting(shown, values, (2, length)) for site, values in shown.values.items()}


def _siblings(base: nn.Module, site: HookSite) -> list[HookSite]:
    """The same site in the other entries of its list that are of its class."""
    lists = [module for module in base.modules() if isinstance(module, nn.ModuleList)]
    beside = next((list(each) for each in lists if any(entry is site.module for entry in each)), [])
    alike = [each for each in beside if each is not site.module and type(each) is type(site.module)]
    return [site._replace(module=each) for each in alike]


def _forward(base: nn.Module, length: int, sites: Iterable[HookSite]) -> _Watched | None:
    """What a forward of 2 x `length` tokens shows; None if it fails, or shows no hidden states."""
    values: dict[HookSite, list[Tensor]] = {}
    try:
        tokens = 3 + torch.arange(2 * length, device=device_of(base)).view(2, length) % max(1, vocab_size(base) - 3)
        with as_before(base), eagerly(base), evaluating(base), _kept(sites, values), torch.no_grad():
            decoder = {"decoder_input_ids": tokens} if base.config.is_encoder_decoder else {}  # type: ignore[union-attr]
            output = base(tokens, output_hidden_states=True, **decoder, **without_cache(base))
    except Exception:  # the error of the forward that the user asked for is the one that is told
        return None
    states = [each for name in ("hidden_states", "encoder_hidden_states") for each in output.get(name) or ()]
    last = output.get("encoder_last_hidden_state", output.get("last_hidden_state"))
    return _Watched(values, [each for each in states if isinstance(each, Tensor)], last) if states else None


@contextmanager
def _kept(sites: Iterable[HookSite], values: dict[HookSite, list[Tensor]]) -> Iterator[None]:
    """Meanwhile the tensors that pass sites are kept, the first time."""

    def keep(site: HookSite, given: Any) -> None:
        values.setdefault(site, [each.clone() for each in tensors_in(given)])

    def on_input(site: HookSite, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(site, received(args, kwargs))

    def on_output(site: HookSite, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        keep(site, output)

    with ExitStack() as stack:
        for site in sites:
            if site.side == "input":
                handle = site.module.register_forward_pre_hook(partial(on_input, site), with_kwargs=True)
            else:
                handle = site.module.register_forward_hook(partial(on_output, site))
            stack.enter_context(handle)
        yield


def _fitting(shown: _Watched, values: Sequence[Tensor], shape: tuple[int, int]) -> set[Layout]:
    """The layouts that fit what was shown."""
    batch, length = shape
    several = [i for i, each in enumerate(values) if each.ndim == 3 and each.shape == values[0].shape]
    width = sum(values[i].shape[-1] for i in several)
    if len(several) > 1 and shown.last is not None and shown.last.shape == (*shape, width):
        return {Layout(tuple(several))}
    found = set()
    for i, value in enumerate(values):
        if value.ndim != 3 or value.shape[0] != batch or not value.is_floating_point():
            continue
        for before in range(value.shape[1] - length + 1):
            part = value[:, before : before + length]
            if any(each.shape == part.shape and torch.allclose(each, part, atol=1e-6) for each in shown.states):
                found.add(Layout((i,), before, value.shape[1] - length - before))
    return found
