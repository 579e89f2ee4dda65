"""PyTorch's defaults, which a program around us may have changed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_defaults() -> Iterator[None]:
    """Inside `with`, or a function that it decorates, numbers of no given type are float32, and of no given device on
    the CPU. Nothing is computed in a type that autocast chooses.

    The default type is one for all threads. Afterwards everything is as before.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
