"""What every forward of a language model that we start has around it."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .wrappers import base_model

_RECORDERS = "transformers.utils.output_capturing"
"""Module of these hooks."""


PATIENCE = 600.0
"""Seconds that a thread waits for another one's graft: a forward takes less, and a graft may stay for ever."""


class _Turn:
    """A lock that its thread may take again, and any thread gives back: another one may go on with a generator."""

    def __init__(self) -> None:
        self._changed, self._owner, self._depth = Condition(), 0, 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits while another thread has it. Raises RuntimeError if that has it for `PATIENCE` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._depth or self._owner == get_ident(), PATIENCE):
                raise RuntimeError(
                    f"the model is grafted in another thread, for {PATIENCE:.0f} seconds now; leave that graft first"
                )
            self._owner = get_ident()
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                self._changed.notify_all()


_TURNS: WeakKeyDictionary[nn.Module, _Turn] = WeakKeyDictionary()
_LOOKING = Lock()


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """No other thread has hooks on the model meanwhile: they would see this one's forward, too."""
    with _LOOKING:
        turn = _TURNS.setdefault(base_model(model), _Turn())
    with turn.taken():
        yield


@contextmanager
def evaluating(base: nn.Module) -> Iterator[None]:
    """Dropout off, and each module's own training flag back afterwards; `alone`."""
    with alone(base):
        training = [module for module in base.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def forward_instead(module: nn.Module, make: Callable[[], Any]) -> Iterator[None]:
    """Inside `with`, the module returns what `make` makes, and does not run; its hooks do."""
    before = module.__dict__.get("forward")  # accelerate puts its own there
    module.forward = lambda *args, **kwargs: make()
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """What modules note of the tokens they read is forgotten: a few of them make BigBird another model for good.

    transformers notes that it records hidden states. With that note its recording hooks go too: the next time they are
    asked for it would add them again, and show each state twice. `alone`.
    """
    with alone(model):
        before = [(module, *_state_of(module), set(module._forward_hooks)) for module in model.modules()]
        try:
            yield
        finally:
            for module, attributes, parts, hooks in before:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                for name, part in parts.items():
                    module.__dict__[name].clear()
                    module.__dict__[name].update(part)
                for key in recorders_of(module):
                    if key not in hooks:
                        del module._forward_hooks[key]


def recorders_of(module: nn.Module) -> list[int]:
    """The keys of the forward hooks by which transformers records what a module puts out."""
    return [key for key, hook in module._forward_hooks.items() if hook.__module__ == _RECORDERS]


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody's hooks wait for a module, those by which transformers records not counted."""
    return bool(module._forward_pre_hooks or module._forward_hooks.keys() - recorders_of(module))


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
