"""PyTorch's defaults and modes, which a program around us may have changed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch


@contextmanager
def own_defaults() -> Iterator[None]:
    """Inside `with`, or a function that it decorates, numbers of no given type are float32, and of no given device on
    the CPU. Nothing is computed in a type that autocast chooses. Gradients are enabled, and inference mode is off: what
    it makes can be changed nowhere else.

    The default type is one for all threads. Afterwards everything is as before.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


def products_in_own_type(device: torch.device) -> AbstractContextManager[None]:
    """Inside `with`, products on this device are in the type of their factors."""
    has_it = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if has_it else nullcontext()
