"""Which weights a model has: the same word for the same weights, whatever holds them."""

import hashlib

import torch
from torch import Tensor, nn

from .hookpoints import block_names, locate
from .pair import by_option, models_in
from .wrappers import base_model

_SAMPLES = 64
"""Numbers that are read of each parameter, evenly over it: a model of 400 tensors takes some milliseconds."""


def fingerprint(model: nn.Module) -> str:
    """What tells the weights of this model's blocks from others; empty where they are not at hand (offloaded).

    It does not depend on the device, on a head or on the names of the modules. Nor does it on float32 or bfloat16: the
    samples are rounded to bfloat16. Its kind stands before a hyphen, and only those of one kind can be compared.
    Weights in 8 bits have one of their own. So have blocks that run several times: earlier versions counted other parts
    of such a model too.
    """
    blocks = _blocks(model)
    digest, in_8bit = hashlib.sha256(), False
    for parameter in nn.ModuleList(dict.fromkeys(blocks)).parameters():
        if parameter.is_meta:
            return ""
        in_8bit |= not parameter.is_floating_point()
        digest.update(f"{parameter.numel()};".encode() + _sample(parameter))
    kind = "8bit" if in_8bit else "weights" if len(set(blocks)) == len(blocks) else "repeated"
    return f"{kind}-{digest.hexdigest()[:32]}"


def fingerprints(model: nn.Module) -> dict[str, str]:
    """The fingerprint of the `model`; of a pair, that of `model_b` too."""
    return by_option([fingerprint(one) for one in models_in(model).values()])


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The block of each layer: an embedding may be padded, and a head or a vision tower be left out."""
    try:
        return [locate(model, name).module for name in block_names(model)]
    except ValueError:  # some architectures have no list of blocks
        return [base_model(model)]


def _sample(parameter: Tensor) -> bytes:
    flat = parameter.detach().reshape(-1)
    few = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].cpu()
    if few.is_floating_point():
        few = few.to(torch.bfloat16)
    return few.contiguous().view(torch.uint8).numpy().tobytes()
