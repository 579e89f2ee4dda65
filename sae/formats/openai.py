"""OpenAI's autoencoders on GPT-2, and Goodfire's: files of torch.save whose tensors alone say what they are."""

import re
from collections.abc import Container
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from sae.dictionary.spec import Saved
from sae.formats.format import Claim, Format, by_itself
from sae.formats.record import Contents, record, transposed
from sae.storage.files import short

_LAYER = re.compile(r"(\d{1,4})\.pt")
_GOODFIRE = re.compile(r".+-SAE-l\d{1,4}\.pt|.+\.pth")
_SITES = {"resid_post_attn": ".ln_2.input", "resid_delta_attn": ".attn", "resid_delta_mlp": ".mlp",
          "mlp_post_act": ".mlp.act", "resid_post_mlp": ""}  # fmt: skip


_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square", "activation")
"""What a file says of training beside the weights."""


def _claim(file: PurePosixPath, names: Container[str]) -> Claim | None:
    is_theirs = _LAYER.fullmatch(file.name) and file.parent.name in ("autoencoders", "")
    return by_itself(file) if is_theirs else None


def _claim_goodfire(file: PurePosixPath, names: Container[str]) -> Claim | None:
    return by_itself(file) if _GOODFIRE.fullmatch(file.name) else None


def hookpoint(path: Path) -> str:
    """The place in GPT-2 that file and folders name."""
    found, place = _LAYER.fullmatch(path.name), "/".join(path.absolute().parts[-4:])
    site = next((end for name, end in _SITES.items() if name in place), "")
    return f"h.{int(found[1])}{site}" if found else ""


def read(path: Path) -> Saved:
    """An autoencoder of OpenAI's. Raises ValueError naming the file and the rule it breaks."""
    found = Contents.of(path)
    W_enc, b_enc, b_dec = found.tensors("encoder.weight", "latent_bias", "pre_bias")
    name = "decoder.linear.weight" if "decoder.linear.weight" in found else "decoder.weight"
    (W_dec,) = found.tensors(name)
    found.check_all_taken(*_STATISTICS)
    tensors = {"encoder.weight": W_enc, "encoder.bias": b_enc, "b_dec": b_dec}
    tensors["W_dec"] = W_dec.contiguous() if name == "decoder.linear.weight" else transposed(W_dec)  # tied, or not
    rule, options = found.get("activation", "ReLU"), found.get("activation_state_dict")
    if rule == "TopK":
        k = options.get("k") if isinstance(options, dict) else None
        k = int(k) if isinstance(k, Tensor) and k.numel() == 1 else k
        if type(k) is not int or not isinstance(options, dict) or options.get("postact_fn", "ReLU") != "ReLU":
            raise ValueError(f"{path}: TopK must have a whole k and ReLU after it, got {short(options)}")
        # The file does not say that tokens are normalised; their loader takes it from the activation.
        return record(path, tensors, "topk", k=k, centred=True, layer_norm=True, writes=hookpoint(path))
    if rule != "ReLU":
        raise ValueError(f"{path}: activation must be TopK or ReLU, got {short(rule)}")
    tensors["threshold"] = torch.zeros_like(b_enc)
    return record(path, tensors, "jumprelu", centred=True, writes=hookpoint(path))


def read_goodfire(path: Path) -> Saved:
    """An autoencoder of Goodfire's, with ReLU. Raises ValueError naming the file and the rule it breaks.

    Who followed them left `_linear` out of the names.
    """
    found = Contents.of(path)
    ending = "" if "encoder.weight" in found else "_linear"
    names = [f"{side}{ending}.{kind}" for side in ("encoder", "decoder") for kind in ("weight", "bias")]
    W_enc, b_enc, W_dec, b_dec = found.tensors(*names)
    found.check_all_taken()
    tensors = {"encoder.weight": W_enc, "encoder.bias": b_enc, "W_dec": transposed(W_dec), "b_dec": b_dec,
               "threshold": torch.zeros_like(b_enc)}  # fmt: skip
    return record(path, tensors, "jumprelu", centred=False, writes=hookpoint_goodfire(path))


def hookpoint_goodfire(path: Path) -> str:
    """The block whose number the name ends with, as in Llama-3.1-8B-Instruct-SAE-l19.pth."""
    found = re.search(r"-l(\d{1,4})$", path.stem)
    return f"layers.{int(found[1])}" if found else ""


OPENAI = Format("openai", "OpenAI's sparse_autoencoder", "autoencoders/<layer>.pt", (), _claim, hookpoint, read)
GOODFIRE = Format(
    "goodfire", "Goodfire", "<name>-SAE-l<layer>.pt or <name>.pth", (), _claim_goodfire, hookpoint_goodfire,
    read_goodfire,
)  # fmt: skip
