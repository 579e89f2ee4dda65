"""What may stand around a language model (torch.compile, data parallelism, PEFT, TransformerLens), and how to look
through it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

COMPILED_BY_US = "_sae_compiled"
"""Marks a block's compiled forward, around which hooks run."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model of transformers inside wrappers, in any number and order; the model itself if there are none.

    Raises ValueError for a wrapper that changes what the model reads, such as a learned prompt, which is lost inside.
    """
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def base_model(model: nn.Module) -> nn.Module:
    """The model without its head and without wrappers, where module paths start; the model itself if it has neither."""
    model = unwrapped(model)
    return unwrapped(getattr(model, "base_model", model))


def check_hooks_are_alone(model: nn.Module) -> None:
    """Raise ValueError for a model that copies of itself run in place of, on several devices at once."""
    for module in model.modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise ValueError(
                f"the model must run on one device to be grafted, got a DataParallel over {len(module.device_ids)}; "
                "give its .module, and run that"
            )


@contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """Compiled code left out meanwhile: it is made without the hooks that come later, and passes them by in silence.

    Blocks that `compile_blocks` compiled have their hooks around them, and stay as they are.
    """
    compiler = sys.modules.get("torch._dynamo")  # not there before something is compiled, and slow to import
    if compiler is None or has_compiled_blocks(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def has_compiled_blocks(model: nn.Module) -> bool:
    """Whether `compile_blocks` compiled a block of this model."""
    return any(hasattr(vars(module).get("forward"), COMPILED_BY_US) for module in model.modules())


def _inner(model: nn.Module) -> nn.Module | None:
    """What one wrapper holds; None if this is no wrapper."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    if "_orig_mod" in model._modules:  # torch.compile
        return model._modules["_orig_mod"]
    if isinstance(original := vars(model).get("original_model"), nn.Module):  # TransformerLens's bridge
        return original
    # A model of transformers that has adapters of its own has a peft_config too.
    if hasattr(model, "peft_config") and not hasattr(type(model), "base_model_prefix"):
        return _inside_peft(model)
    return None


def _inside_peft(model: Any) -> nn.Module | None:
    """What a wrapper of PEFT holds: the model into which it put its adapters, or another wrapper."""
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise ValueError(
            f"the model must read nothing but its tokens, got one with a learned prompt ({type(model).__name__}, "
            f"{type(config).__name__}), which would be left out; use adapters that sit inside, such as LoRA"
        )
    return next((model._modules[name] for name in ("base_model", "model") if name in model._modules), None)
