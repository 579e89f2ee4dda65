"""Where a module's values hold the residual stream, by what the model itself shows as its hidden states."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .forward import as_before, device_of, evaluating, without_cache
from .hookpoints import Place, base_model, locate
from .layout import Layout, received, tensors_in
from .load import vocab_size
from .wrappers import eagerly

_LENGTHS = (3, 5)
"""Numbers of tokens of the forwards: what is the same for both belongs to the model."""


class _Watched(NamedTuple):
    """What one forward showed."""

    values: dict[Place, list[Tensor]]
    """The tensors that pass each place."""
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
    places = {name: locate(base, name)._replace(call=0) for name in hookpoints}
    beside = {name: _siblings(base, place) for name, place in places.items()}
    watched = {place for name in hookpoints for place in (places[name], *beside[name])}
    one, other = (_fitting_in(base, length, watched) for length in _LENGTHS)
    alone = {
        place: {layout for layout in found if not layout.before and not layout.after}
        for place, found in (_fitting_in(base, seq, watched) if seq > max(_LENGTHS) else {}).items()
    }
    fitting = {place: one.get(place, set()) & other.get(place, set()) or alone.get(place, set()) for place in watched}
    layouts = {}
    for name, place in places.items():
        candidates = fitting[place] or set().union(*(fitting[each] for each in beside[name]))
        if len(candidates) == 1:
            (layouts[name],) = candidates
    return layouts


def _fitting_in(base: nn.Module, length: int, places: Iterable[Place]) -> dict[Place, set[Layout]]:
    """The layouts that fit what a forward of 2 x `length` tokens shows at each place."""
    shown = _forward(base, length, places)
    if shown is None:
        return {}
    return {place: _fitting(shown, values, (2, length)) for place, values in shown.values.items()}


def _siblings(base: nn.Module, place: Place) -> list[Place]:
    """The same place in the other entries of its list that are of its class."""
    lists = [module for module in base.modules() if isinstance(module, nn.ModuleList)]
    beside = next((list(each) for each in lists if any(entry is place.module for entry in each)), [])
    alike = [each for each in beside if each is not place.module and type(each) is type(place.module)]
    return [place._replace(module=each) for each in alike]


def _forward(base: nn.Module, length: int, places: Iterable[Place]) -> _Watched | None:
    """What a forward of 2 x `length` tokens shows; None if it fails, or shows no hidden states."""
    values: dict[Place, list[Tensor]] = {}
    try:
        tokens = 3 + torch.arange(2 * length, device=device_of(base)).view(2, length) % max(1, vocab_size(base) - 3)
        with as_before(base), eagerly(base), evaluating(base), _kept(places, values), torch.no_grad():
            decoder = {"decoder_input_ids": tokens} if base.config.is_encoder_decoder else {}  # type: ignore[union-attr]
            output = base(tokens, output_hidden_states=True, **decoder, **without_cache(base))
    except Exception:  # the error of the forward that the user asked for is the one that is told
        return None
    states = [each for name in ("hidden_states", "encoder_hidden_states") for each in output.get(name) or ()]
    last = output.get("encoder_last_hidden_state", output.get("last_hidden_state"))
    return _Watched(values, [each for each in states if isinstance(each, Tensor)], last) if states else None


@contextmanager
def _kept(places: Iterable[Place], values: dict[Place, list[Tensor]]) -> Iterator[None]:
    """Meanwhile the tensors that pass places are kept, the first time."""

    def keep(place: Place, given: Any) -> None:
        values.setdefault(place, [each.clone() for each in tensors_in(given)])

    def on_input(place: Place, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(place, received(args, kwargs))

    def on_output(place: Place, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        keep(place, output)

    with ExitStack() as stack:
        for place in places:
            if place.side == "input":
                handle = place.module.register_forward_pre_hook(partial(on_input, place), with_kwargs=True)
            else:
                handle = place.module.register_forward_hook(partial(on_output, place))
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
