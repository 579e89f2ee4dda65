"""Compile a language model block by block: all blocks share their code, so that the compiler runs once for all."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .hookpoints import block_list, locate
from .pair import apart, of_side
from .wrappers import COMPILED_BY_US, base_model


def compile_blocks(
    model: nn.Module, hookpoints: Sequence[str] = (), *, backend: str | Callable[..., Any] = "inductor"
) -> int:
    """Compile the forward of the transformer blocks, in place; how many were. Nothing is compiled before it first runs.

    Hooks on a block stay outside of what is compiled. Those on a module within one would be compiled away, so a block
    that has one of the `hookpoints` inside is left as it is. Raises ValueError for a model without a list of blocks.
    """
    compiled = 0
    for side, one, own in apart(model, hookpoints):
        with of_side(side):
            compiled += _compile_blocks(one, own, backend)
    return compiled


def _compile_blocks(model: nn.Module, hookpoints: Sequence[str], backend: str | Callable[..., Any]) -> int:
    base = base_model(model)
    try:
        path, _ = block_list(base)
    except ValueError:
        raise ValueError(
            f"--compile_lm must find the model's list of transformer blocks, and {type(base).__name__} has none; "
            "leave out --compile_lm"
        ) from None
    hooked = {locate(base, hookpoint)[0] for hookpoint in hookpoints}
    blocks = [
        block for block in base.get_submodule(path).children() if hooked.isdisjoint(set(block.modules()) - {block})
    ]
    for block in blocks:
        block.forward = _compiled(block.forward, backend)
    return len(blocks)


def _compiled(forward: Callable[..., Any], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled when it first runs. Raises ValueError in one line where that fails."""
    compiled = torch.compile(forward, backend=backend)

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(getattr(error, "inner_exception", error)).strip().split("\n")[0]
            raise ValueError(
                f"--compile_lm must find what torch.compile needs, such as a C++ compiler, and failed ({reason}); "
                "leave out --compile_lm"
            ) from error

    setattr(run, COMPILED_BY_US, True)
    return run
