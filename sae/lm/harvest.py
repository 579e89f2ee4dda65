"""Read what passes the hookpoints of a language model, and run no more of it than that needs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .context import context_limit
from .explain import one_line
from .forward import as_before, device_of, evaluating, without_cache
from .fused import fused
from .hookpoints import block_list, locate
from .layout import Layout, as_tokens, found_instead, received, tensors_in
from .load import vocab_size
from .pair import apart, of_side
from .shown import layouts_shown
from .wrappers import base_model, eagerly


class HookpointError(ValueError):
    """A hookpoint that a forward does not pass, or that does not carry one vector for each token."""


def harvest(
    model: nn.Module, tokens: Int[Tensor, "batch seq"], hookpoints: Sequence[str]
) -> dict[str, Float[Tensor, "batch seq _"]]:
    """The activations at hookpoints, without gradient.

    The forward stops behind the last hookpoint. A module that runs several times counts the first time, or as its
    `.call2` says. Dropout is off meanwhile. The model is as before afterwards, also if its forward raises. A value may
    not be one vector for each token, such as several streams or a prompt before the tokens. It is then read where the
    model's own hidden states tell how.

    Args:
        model: Model of transformers, or a pair of them.
        tokens: Token ids (batch, seq).
        hookpoints: Names of hookpoints.

    Returns:
        {hookpoint: (batch, seq, d_in)}, in the model's dtype and on its device.

    Raises:
        ValueError: For a hookpoint that the model lacks, that its forward does not pass, or whose value cannot be read
            as one vector for each token.
    """
    found: dict[str, Tensor] = {}
    for side, one, own in apart(model, hookpoints):
        with of_side(side):
            found |= {side + name: acts for name, acts in _harvest(one, tokens, own).items()}
    return {hookpoint: found[hookpoint] for hookpoint in hookpoints}


def _harvest(
    model: nn.Module, tokens: Int[Tensor, "batch seq"], hookpoints: Sequence[str]
) -> dict[str, Float[Tensor, "batch seq _"]]:
    """The activations of a single model."""
    base = base_model(model)
    if tokens.shape[0] == tokens.shape[1] > 1 and positions_first(base, hookpoints):  # told apart by unequal axes
        parts = [_harvest(model, part, hookpoints) for part in (tokens[:-1], tokens[-1:])]
        return {name: torch.cat([part[name] for part in parts]) for name in hookpoints}
    try:
        capture = _run(base, tokens, hookpoints)
    except HookpointError:
        if not _learn_layouts(base, hookpoints, tokens.shape[1]):
            raise
        capture = _run(base, tokens, hookpoints)
    if capture.missing:
        raise HookpointError(
            f"--hookpoints must name modules that the forward of {type(base).__name__} runs, and "
            f"{', '.join(capture.missing)} was not reached; name a module inside or around it"
        )
    return {hookpoint: capture.found[hookpoint] for hookpoint in hookpoints}


def _run(base: nn.Module, tokens: Tensor, hookpoints: Sequence[str]) -> "Capture":
    capture = Capture(hookpoints, tuple(tokens.shape), layouts(base))
    with evaluating(base), eagerly(base), fused(base), _hooked(base, capture), torch.no_grad(), suppress(_Stop):
        base(tokens.to(device_of(base)), **without_cache(base))
    return capture


def widths(model: nn.Module, hookpoints: Sequence[str], ctx_len: int | None = None) -> dict[str, int]:
    """Width of each hookpoint, from a forward of 2 x 3 tokens (sizes that a wrong shape does not have by chance).

    It needs the weights: a forward of transformers does not run on the meta device.

    Args:
        model: Model of transformers, or a pair of them.
        hookpoints: Names of hookpoints.
        ctx_len: Length of the sequences to come. A model that pads shorter ones is asked at that length, and one whose
            positions end about there is tried at it.

    Returns:
        {hookpoint: d_in}

    Raises:
        ValueError: As `harvest`, and for a length that the model cannot read.
    """
    found: dict[str, int] = {}
    for side, one, own in apart(model, hookpoints):
        with of_side(side):
            found |= {side + name: width for name, width in _widths(one, own, ctx_len).items()}
    return {hookpoint: found[hookpoint] for hookpoint in hookpoints}


def _widths(model: nn.Module, hookpoints: Sequence[str], ctx_len: int | None) -> dict[str, int]:
    """The widths in a single model."""
    base = base_model(model)
    for hookpoint in hookpoints:
        locate(base, hookpoint)
    errors: list[Exception] = []
    for length in dict.fromkeys([3, ctx_len or 3]):
        try:
            found = _probe(base, hookpoints, (2, length))
            break
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a forward of any architecture may raise
            errors.append(error)
    else:
        raise _told(base, next((error for error in errors if isinstance(error, HookpointError)), errors[0]))
    limit = context_limit(base)
    if ctx_len is not None and limit is not None and ctx_len > limit - POSITIONS_IN_DOUBT:
        _try_length(model, hookpoints, ctx_len)
    return found


POSITIONS_IN_DOUBT = 8
"""Number of tokens below its apparent limit from which a model is tried before it is trusted."""


def _told(base: nn.Module, error: Exception) -> ValueError:
    """The error for the person who named the model."""
    if isinstance(error, HookpointError):
        return error
    text = f"{type(base).__name__} must run on token ids alone, and its forward ends in an error ({one_line(error)})"
    reads = getattr(base, "main_input_name", "input_ids")
    if reads not in ("input_ids", "decoder_input_ids"):
        told = ValueError(
            f"{type(base).__name__} must run on token ids alone, but it reads {reads}; a model that needs images, "
            "sound or more cannot be used; give a model of text, or the part of it that reads text"
        )
    elif all(weight.dtype == torch.float32 for weight in base.parameters()):
        told = ValueError(f"{text}; a model that needs images, sound or more cannot be used")
    else:
        told = ValueError(f"{text}; try --dtype float32. A model that needs images, sound or more cannot be used")
    told.__cause__ = error
    return told


_PROBE = 64
"""Positions of a forward that is tried: more than the pieces in which some models compute."""


def _last_block(base: nn.Module) -> list[str]:
    """The hookpoint of the last block, alone; none if the model has no list of blocks."""
    try:
        path, count = block_list(base)
    except ValueError:
        return []
    return [f"{path}.{count - 1}"]


def cannot_compute(model: nn.Module) -> str:
    """Why the model cannot run in the type of its weights, in one line; "" if it can.

    Of a model without its head only the blocks are run: what comes after them, such as a voice, may take long.
    """
    base = base_model(model)
    blocks = _last_block(base) if base is model else []
    try:
        tokens = _tokens(base, (1, min(_PROBE, context_limit(base) or _PROBE)))
        with as_before(base), evaluating(base), torch.no_grad():
            _run(base, tokens, blocks) if blocks else base(tokens, **without_cache(base))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return one_line(error)
    except Exception:  # other errors appear when the model is run in earnest
        return ""
    return ""


def _tokens(base: nn.Module, shape: tuple[int, int]) -> Tensor:
    # not 0 or 1, which are often padding
    return torch.full(shape, min(3, vocab_size(base) - 1), device=device_of(base))


def _probe(model: nn.Module, hookpoints: Sequence[str], shape: tuple[int, int]) -> dict[str, int]:
    base = base_model(model)
    with as_before(base):
        found = _harvest(model, _tokens(base, shape), hookpoints)
    return {hookpoint: value.shape[-1] for hookpoint, value in found.items()}


_LAYOUTS: WeakKeyDictionary[nn.Module, dict[str, Layout]] = WeakKeyDictionary()
_ASKED: WeakKeyDictionary[nn.Module, set[tuple[str, int]]] = WeakKeyDictionary()
"""At which hookpoints a model was asked for the layout, and at how many tokens."""


def layouts(model: nn.Module) -> dict[str, Layout]:
    """The layouts that the model was asked for, and has told."""
    return dict(_LAYOUTS.get(base_model(model), {}))


def _learn_layouts(base: nn.Module, hookpoints: Iterable[str], seq: int) -> bool:
    """Ask the model, once, how hookpoints pass what is not one vector for each token; whether anything was found."""
    known, asked = _LAYOUTS.setdefault(base, {}), _ASKED.setdefault(base, set())
    new = [name for name in hookpoints if name not in known and (name, seq) not in asked]
    asked.update((name, seq) for name in new)
    found = layouts_shown(base, new, seq) if new else {}
    known.update(found)
    return bool(found)


_POSITIONS_FIRST: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()


def positions_first(model: nn.Module, hookpoints: Iterable[str]) -> set[str]:
    """Which hookpoints carry (seq, batch, d_in), asked of the model once for each with a forward of 2 x 3 tokens."""
    base, hookpoints = base_model(model), list(hookpoints)
    known = _POSITIONS_FIRST.setdefault(base, {})
    new = [hookpoint for hookpoint in hookpoints if hookpoint not in known]
    if new:
        with as_before(base):
            known.update(_turned(base, new))
    return {hookpoint for hookpoint in hookpoints if known[hookpoint]}


def _turned(base: nn.Module, hookpoints: Sequence[str]) -> dict[str, bool]:
    try:
        turned = _run(base, _tokens(base, (2, 3)), hookpoints).turned
    except HookpointError:
        _learn_layouts(base, hookpoints, 0)
        turned = set()
    except Exception:  # errors appear when the model is run in earnest
        turned = set()
    return {hookpoint: hookpoint in turned for hookpoint in hookpoints}


def _try_length(model: nn.Module, hookpoints: Sequence[str], ctx_len: int) -> None:
    try:
        _probe(model, hookpoints, (1, ctx_len))
    except (IndexError, RuntimeError) as error:
        raise ValueError(
            f"--ctx_len must be what {type(base_model(model)).__name__} can read, and {ctx_len} tokens end in an error "
            f"({one_line(error)}); lower --ctx_len"
        ) from error


class Capture:
    """What one forward has left at the hookpoints so far: `found`, and the names still `missing`, in order."""

    def __init__(self, hookpoints: Sequence[str], shape: tuple[int, ...], layouts: Mapping[str, Layout]) -> None:
        self.shape, self.layouts = shape, layouts
        self.missing = dict.fromkeys(hookpoints)
        self.found: dict[str, Tensor] = {}
        self.turned: set[str] = set()
        """Hookpoints among the found ones that carry (seq, batch, d_in)."""

    def on_output(self, hookpoint: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if hookpoint in self.missing and hookpoint not in self.layouts:
            check_one_stream(hookpoint, output, self.shape)
        self.take(hookpoint, output)

    def on_input(self, hookpoint: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.take(hookpoint, received(args, kwargs))

    def take(self, hookpoint: str, values: Any) -> None:
        """Keep what a module received or returned. Raises _Stop when nothing is missing any more."""
        if hookpoint not in self.missing:
            return
        value = vectors(hookpoint, values, self.shape, layout=self.layouts.get(hookpoint))
        x = None if hookpoint in self.layouts else first_tensor(values)
        if x is not None and x.shape[:2] != value.shape[:2] and x.ndim == 3:
            self.turned.add(hookpoint)
        del self.missing[hookpoint]
        if not self.missing:
            self.found[hookpoint] = value
            raise _Stop
        # Modules that run later may write into this tensor (residuals added in place). After the last, none runs.
        self.found[hookpoint] = value.clone()


class _Stop(Exception):
    """All hookpoints have been passed: what is left of the forward is not needed."""


@contextmanager
def _hooked(base: nn.Module, capture: Capture) -> Iterator[None]:
    with ExitStack() as stack:
        for hookpoint in list(capture.missing):
            module, side, call = locate(base, hookpoint)
            if side == "input":
                hook = at_call(call, partial(capture.on_input, hookpoint))
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                handle = module.register_forward_hook(at_call(call, partial(capture.on_output, hookpoint)))
            stack.enter_context(handle)
        yield


class Runs:
    """Counter of a module's runs in one forward: the first `call` of them are passed over."""

    def __init__(self, call: int = 0) -> None:
        self._call, self._seen = call, 0

    def restart(self) -> None:
        """A forward begins."""
        self._seen = 0

    def reached(self) -> bool:
        """Count a run; whether it is the one that is meant, or a later one."""
        self._seen += 1
        return self._seen > self._call


def at_call(call: int, hook: Callable[..., None]) -> Callable[..., None]:
    """The hook, left out the first `call` times."""
    runs = Runs(call)
    return lambda *args: hook(*args) if runs.reached() else None


def first_tensor(values: Any) -> Tensor | None:
    """The value itself, or the first tensor of several."""
    return next(iter(tensors_in(values)), None)


def check_one_stream(hookpoint: str, output: Any, shape: tuple[int, ...] | None = None) -> None:
    """Raises ValueError for a module that returns two streams of vectors for the tokens, the first of which is half."""
    several = tuple(output.values()) if isinstance(output, dict) else output
    first = first_tensor(output)
    if not isinstance(several, tuple | list) or first is None or first.ndim != 3:
        return
    if shape is not None and first.shape[:2] != shape:  # not a vector for each token at all
        return
    alike = {id(each) for each in several if isinstance(each, Tensor) and each.shape == first.shape}
    if len(alike) > 1:
        raise HookpointError(
            f"hookpoint {hookpoint} must return one vector per token, and returns {len(alike)} of shape "
            f"{tuple(first.shape)}, of which none is the whole; name a module inside it, or another"
        )


def vectors(
    hookpoint: str,
    values: Any,
    shape: tuple[int, ...] | None,
    *,
    turned: bool = False,
    layout: Layout | None,
) -> Float[Tensor, "batch seq d_in"]:
    """What passes a hookpoint, one vector for each token of `shape`. Raises ValueError if it is nothing of the kind.

    Where it is known to carry (seq, batch, d_in), `turned` says so, and where the tokens are a part of it, `layout`.
    """
    try:
        value = first_tensor(values) if layout is None else layout.read(values)
    except ValueError as error:
        raise HookpointError(f"hookpoint {hookpoint} must carry one vector per token, and carries {error}") from None
    # A caller that does not know the tokens sees three axes alone: (batch, seq, d_in).
    known = value.shape[:2] if shape is None and value is not None and value.ndim == 3 else shape
    found = None if value is None or known is None else as_tokens(value, known, positions_first=turned)
    if found is None:
        expected = "(batch, seq, d_in)" + (f" with (batch, seq) = {shape}" if shape is not None else "")
        raise HookpointError(
            f"hookpoint {hookpoint} must carry one vector per token, {expected}, got {found_instead(value, shape)}"
        )
    return found
