"""overcomplete: the state_dict of a vision model's SAE. Its selection stands nowhere, but for JumpSAE's thresholds.

Rows of the dictionary are normalised to length 1 when it runs, times e^multiplier. A batch norm after the encoder is
linear at inference, and goes into it. Source: overcomplete 0.3.0, `overcomplete.sae`.
"""

import re
from collections.abc import Container
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from sae.dictionary.spec import Saved, in_float32
from sae.formats.format import Claim, Format, by_itself
from sae.formats.record import Contents, record
from sae.storage.files import short

DICTIONARY = "dictionary._weights"
_LINEAR, _NORM = "encoder.final_block.0", "encoder.final_block.1"
_RULE = re.compile(r"(?:^|[-_.])(?:(relu)|k_?(\d{1,6}))(?=[-_.])", re.IGNORECASE)
_TINY = 1e-8
"""What the library adds to a row's length before it divides by it."""
_EPS = 1e-5
"""What torch's batch norm adds to a variance."""


def _claim(file: PurePosixPath, names: Container[str]) -> Claim | None:
    is_theirs = file.suffix == ".pt" and "overcomplete" in file.name.lower()
    return by_itself(file) if is_theirs else None


def hookpoint(path: Path) -> str:
    """Nothing: a vision model's layer stands nowhere, and the file's name serves."""
    return path.stem


def read(path: Path) -> Saved:
    """The dictionary in a file. Raises ValueError naming the file and the rule it breaks."""
    found = Contents.of(path)
    tensors = in_float32(_encoder(found) | {"W_dec": _rows(found)})
    tensors["b_dec"] = torch.zeros(tensors["W_dec"].shape[-1])
    selection, k = "jumprelu", None
    if "thresholds" in found:
        tensors["threshold"] = in_float32({"": found.tensors("thresholds")[0]})[""].exp()
    elif (k := k_in(path)) is None:
        tensors["threshold"] = torch.zeros(len(tensors["W_dec"]))
    else:
        selection = "topk"
    found.check_all_taken("encoder.tied_to.", f"{_NORM}.num_batches_tracked")
    return record(path, tensors, selection, k=k, centred=False)


def k_in(path: Path) -> int | None:
    """k by the file's name; None for relu. Raises ValueError if it says neither."""
    rules = list(_RULE.finditer(path.name))
    if len(rules) != 1:
        raise ValueError(
            f"{path}: its name must hold k<k>, as overcomplete-k32.pt, or relu, one of them and once: nothing in the "
            "file says which latents stay (SAE, TopKSAE and BatchTopKSAE look alike); rename it"
        )
    return None if rules[0][1] else int(rules[0][2])


def _rows(found: Contents) -> Tensor:
    """The dictionary as it runs."""
    weights, multiplier = found.tensors(DICTIONARY, "dictionary.multiplier")
    if weights.dim() != 2 or multiplier.numel() != 1 or not bool(multiplier.float().exp().isfinite().all()):
        raise ValueError(
            f"{found.path}: {DICTIONARY} must be a matrix, and dictionary.multiplier one number whose exponential is "
            f"finite, got shape {tuple(weights.shape)} and {short(multiplier)}"
        )
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
    return wide / (torch.linalg.vector_norm(wide, dim=1, keepdim=True) + _TINY) * multiplier.to(wide.dtype).exp()


def _encoder(found: Contents) -> dict[str, Tensor]:
    """Weight and bias of the encoder, its batch norm in them. One that is tied is the dictionary."""
    if blocks := sorted(name for name in found if name.startswith("encoder.") and not _is_known(name)):
        raise ValueError(f"{found.path}: the encoder must be one linear layer, but the file holds {short(blocks[:4])}")
    if f"{_LINEAR}.weight" not in found:
        weight = found.tensors("encoder.weight")[0] if "encoder.weight" in found else _rows(found)
        bias = found.tensors("encoder.bias")[0] if "encoder.bias" in found else weight.new_zeros(len(weight))
        return {"encoder.weight": weight, "encoder.bias": bias}
    weight, bias = found.tensors(f"{_LINEAR}.weight", f"{_LINEAR}.bias")
    if f"{_NORM}.weight" not in found:
        return {"encoder.weight": weight, "encoder.bias": bias}
    if f"{_NORM}.running_var" not in found:
        raise ValueError(f"{found.path}: a layer norm of pre-activations is not supported, as it looks at all latents")
    norm = found.tensors(*(f"{_NORM}.{name}" for name in ("weight", "bias", "running_mean", "running_var")))
    shapes = {tuple(t.shape) for t in (bias, *norm)}
    if len(shapes) > 1 or weight.dim() != 2 or shapes != {(len(weight),)}:
        raise ValueError(f"{found.path}: the batch norm must have an entry for each latent, got shapes {short(shapes)}")
    gain, shift, mean, variance = (t.double() for t in norm)
    factor = gain / (variance + _EPS).sqrt()
    folded = weight.double() * factor[:, None], (bias.double() - mean) * factor + shift
    return {"encoder.weight": folded[0].float(), "encoder.bias": folded[1].float()}


def _is_known(name: str) -> bool:
    """Whether it is of a linear encoder: its own tensors, a norm's, or the dictionary's that it is tied to."""
    prefixes = (f"{_LINEAR}.", f"{_NORM}.", "encoder.tied_to.")
    return name in ("encoder.weight", "encoder.bias") or name.startswith(prefixes)


OVERCOMPLETE = Format(
    "overcomplete", "overcomplete", "<name>.overcomplete.pt", (), _claim, hookpoint, read, says_hookpoint=False
)
