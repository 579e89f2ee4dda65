"""Compile a language model block by block: all blocks share their code, so that the compiler runs once for all."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .hookpoints import base_model, block_list, locate


def compile_blocks(
    model: nn.Module, hookpoints: Sequence[str] = (), *, backend: str | Callable[..., Any] = "inductor"
) -> int:
    """Compile the forward of the transformer blocks, in place; how many were. Nothing is compiled before it first runs.

    Hooks on a block stay outside of what is compiled. Those on a module within one would be compiled away, so a block
    that has one of the `hookpoints` inside is left as it is. Raises ValueError for a model without a list of blocks.
    """
    base = base_model(model)
    path, _ = block_list(base)
    hooked = {locate(base, hookpoint)[0] for hookpoint in hookpoints}
    blocks = [
        block for block in base.get_submodule(path).children() if hooked.isdisjoint(set(block.modules()) - {block})
    ]
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=backend)
    return len(blocks)
