"""Read what passes the hookpoints of a language model, and run no more of it than that needs."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .hookpoints import base_model, locate
from .load import vocab_size
from .wrappers import eagerly


def harvest(
    model: nn.Module, tokens: Int[Tensor, "batch seq"], hookpoints: Sequence[str]
) -> dict[str, Float[Tensor, "batch seq _"]]:
    """The activations at each hookpoint, (batch, seq, d_in), in the model's dtype and on its device, without gradient.

    The forward stops behind the last hookpoint. A module that runs several times counts the first time. The model is
    as before afterwards, also if its forward raises; dropout is off meanwhile. Raises ValueError for a hookpoint that
    the model lacks, that its forward does not pass, or whose value is not a (batch, seq, d_in) tensor.
    """
    base = base_model(model)
    capture = Capture(hookpoints, tuple(tokens.shape))
    with eagerly(base), _hooked(base, capture), evaluating(base), torch.no_grad(), suppress(_Stop):
        base(tokens.to(device_of(base)), **without_cache(base))
    if capture.missing:
        raise ValueError(
            f"--hookpoints must name modules that the forward of {type(base).__name__} runs, and "
            f"{', '.join(capture.missing)} was not reached; name a module inside or around it"
        )
    return {hookpoint: capture.found[hookpoint] for hookpoint in hookpoints}


def widths(model: nn.Module, hookpoints: Sequence[str]) -> dict[str, int]:
    """d_in of each hookpoint, from a forward of 2 x 3 tokens (sizes that a wrong shape does not have by chance).

    Raises ValueError as `harvest` does. Needs the weights: a forward of transformers does not run on the meta device.
    """
    # not 0 or 1, which are often padding
    tokens = torch.full((2, 3), min(3, vocab_size(base_model(model)) - 1))
    with as_before(base_model(model)):
        return {hookpoint: value.shape[-1] for hookpoint, value in harvest(model, tokens, hookpoints).items()}


class Capture:
    """What one forward has left at the hookpoints so far: `found`, and the names still `missing`, in order."""

    def __init__(self, hookpoints: Sequence[str], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.missing = dict.fromkeys(hookpoints)
        self.found: dict[str, Tensor] = {}

    def on_output(self, hookpoint: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.take(hookpoint, output)

    def on_input(self, hookpoint: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.take(hookpoint, (*args, kwargs.get("hidden_states"), *kwargs.values()))

    def take(self, hookpoint: str, values: Any) -> None:
        """Keep what a module received or returned. Raises _Stop when nothing is missing any more."""
        if hookpoint not in self.missing:
            return
        value = first_tensor(hookpoint, values, self.shape)
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
            module, side = locate(base, hookpoint)
            if side == "input":
                handle = module.register_forward_pre_hook(partial(capture.on_input, hookpoint), with_kwargs=True)
            else:
                handle = module.register_forward_hook(partial(capture.on_output, hookpoint))
            stack.enter_context(handle)
        yield


def first_tensor(hookpoint: str, values: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """The value itself, or the first tensor of several; checked to be one vector for each token of `shape`."""
    if isinstance(values, dict):  # transformers' ModelOutput
        values = tuple(values.values())
    several = values if isinstance(values, tuple | list) else (values,)
    value = next((each for each in several if isinstance(each, Tensor)), None)
    fits = value is not None and value.ndim == 3 and value.is_floating_point()
    if value is None or not fits or (shape is not None and value.shape[:2] != shape):
        found = "no tensor" if value is None else f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        expected = "(batch, seq, d_in)" + (f" with (batch, seq) = {shape}" if shape is not None else "")
        raise ValueError(
            f"hookpoint {hookpoint} must carry one vector per token, {expected}, "
            f"got {found}; name another module, e.g. the block that holds it"
        )
    return value


@contextmanager
def evaluating(base: nn.Module) -> Iterator[None]:
    """Dropout off, and each module's own training flag back afterwards."""
    training = [module for module in base.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """What modules note of the tokens they read is forgotten: a few of them make BigBird another model for good."""
    before = [(module, _state_of(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, (attributes, parts) in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, part in parts.items():
                module.__dict__[name].clear()
                module.__dict__[name].update(part)


def _state_of(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A module's attributes, and the modules and tensors that it holds."""
    parts = {name: dict(vars(module)[name]) for name in ("_modules", "_parameters", "_buffers")}
    return dict(vars(module)), parts


def device_of(base: nn.Module) -> torch.device:
    """Where tokens go in. Weights that accelerate keeps elsewhere until they are needed are on no device."""
    return next((p.device for p in base.parameters() if not p.is_meta), torch.device("cpu"))


def without_cache(base: nn.Module) -> dict[str, bool]:
    """No key-value cache, in the words of the models that can have one."""
    return {"use_cache": False} if "use_cache" in inspect.signature(base.forward).parameters else {}
