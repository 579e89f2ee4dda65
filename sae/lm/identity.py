"""Which weights a model has: the same word for the same weights, whatever holds them."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .hookpoints import base_model, block_names, locate

_SAMPLES = 64
"""Numbers that are read of each parameter, evenly over it: a model of 400 tensors takes some milliseconds."""


def fingerprint(model: nn.Module) -> str:
    """What tells the weights of this model's blocks from others; empty where they are not at hand (offloaded).

    It does not depend on the device, on a head or on the names of the modules. Nor does it on float32 or bfloat16: the
    samples are rounded to bfloat16. Weights in 8 bits have one of their own.
    """
    digest, in_8bit = hashlib.sha256(), False
    for parameter in _parameters(model):
        if parameter.is_meta:
            return ""
        in_8bit |= not parameter.is_floating_point()
        digest.update(f"{parameter.numel()};".encode() + _sample(parameter))
    return f"{'8bit' if in_8bit else 'weights'}-{digest.hexdigest()[:32]}"


def _parameters(model: nn.Module) -> Iterator[Tensor]:
    """Parameters of the blocks: an embedding may be padded, and a head or a vision tower be left out."""
    try:
        blocks = [locate(model, name).module for name in block_names(model)]
    except ValueError:  # some architectures have no list of blocks
        blocks = [base_model(model)]
    return nn.ModuleList(dict.fromkeys(blocks)).parameters()


def _sample(parameter: Tensor) -> bytes:
    flat = parameter.detach().reshape(-1)
    few = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].cpu()
    if few.is_floating_point():
        few = few.to(torch.bfloat16)
    return few.contiguous().view(torch.uint8).numpy().tobytes()
