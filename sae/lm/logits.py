"""The language model in two halves: its hidden states for all tokens, then its logits for a few tokens at a time."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .harvest import device_of, evaluating, without_cache
from .hookpoints import base_model


def has_head(model: nn.Module) -> bool:
    """Whether the model ends in logits over the vocabulary, and not in hidden states."""
    output_embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    return base_model(model) is not model and output_embeddings is not None


def is_causal(model: nn.Module) -> bool:
    """Whether a token sees only those before it, so that the cross-entropy of the next one means something."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    config = type(model.config)
    return config in MODEL_FOR_CAUSAL_LM_MAPPING and config not in MODEL_FOR_MASKED_LM_MAPPING


def run_base(model: nn.Module, tokens: Int[Tensor, "batch seq"]) -> Any:
    """What the model without its head returns for `tokens`, in evaluation mode; gradients are the caller's affair."""
    base = base_model(model)
    with evaluating(base):
        return base(tokens.to(device_of(base)), **without_cache(base))


def with_hidden(output: Any, hidden: Float[Tensor, "batch seq d"]) -> Any:
    """A copy of an output of `run_base` with other hidden states."""
    changed = copy.copy(output)
    changed["last_hidden_state"] = hidden
    return changed


def logits_of(
    model: nn.Module, tokens: Int[Tensor, "batch seq"], output: Any, part: slice
) -> Float[Tensor, "batch part vocab"]:
    """The logits at the positions `part`, from the `output` of `run_base`.

    It is the model's own forward around a base that hands out `output`: what an architecture does to its logits, such
    as capping them, is done.
    """
    cut = with_hidden(output, output["last_hidden_state"][:, part])
    with _forward_returns(base_model(model), cut), evaluating(model):
        return model(input_ids=tokens[:, part].to(device_of(model)), **without_cache(model)).logits


@contextmanager
def _forward_returns(base: nn.Module, output: Any) -> Iterator[None]:
    before = base.__dict__.get("forward")  # accelerate puts its own there
    base.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before


def num_positions_per_chunk(batch: int, vocab_size: int, device: torch.device) -> int:
    """How many positions' logits to hold at once, for `batch` sequences: 64 MiB of float32, on a GPU 1 GiB."""
    budget = 2**30 if device.type == "cuda" else 2**26
    return max(1, budget // (4 * batch * vocab_size))
