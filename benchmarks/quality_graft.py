"""What a reconstruction does to the language model that gets it instead of the activations of a block.

One definition for every library: each writes its x̂ of the same test tokens to a file, and here they are put into
the model, at every position but a sequence's first, which keeps its activation, as in training.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from language_models import load
from quality_data import BLOCK_SEQUENCES, CTX_LEN, READERS, VALIDATION_SEQUENCES, token_file
from torch import Tensor, nn
from torch.nn import functional as F

from sae.lm import graft

SEQUENCES = BLOCK_SEQUENCES - VALIDATION_SEQUENCES
"""Sequences that are grafted: all test ones."""
FIRST_ROW = VALIDATION_SEQUENCES * (CTX_LEN - 1)
END_ROW = FIRST_ROW + SEQUENCES * (CTX_LEN - 1)
_AT_ONCE = 4  # sequences
Change = Callable[[Tensor], Tensor]


def grafted(text: str, layer: int, recon: Tensor, device: str = "cpu") -> dict[str, float]:
    """`recon` (SEQUENCES · (CTX_LEN − 1), d_in) in place of the block's output.

    `kl` is KL(clean ‖ grafted) and `ce` the cross-entropy with the next token, in nats, means over the positions that
    were changed and have a next token; `ce_recovered` is (ce_zero − ce) / (ce_zero − ce_clean), where `ce_zero` is
    with zeros in the same places (SAEBench's `ce_loss_score`).
    """
    parts = iter(recon.unflatten(0, (SEQUENCES, CTX_LEN - 1)).split(_AT_ONCE))
    ce_clean, ce_zero = _baselines(text, layer, device)
    kl, ce = _measured(text, layer, device, lambda acts: torch.cat([acts[:, :1], next(parts).to(acts)], 1))
    recovered = (ce_zero - ce) / (ce_zero - ce_clean)
    return {
        "kl": kl,
        "ce": ce,
        "ce_clean": ce_clean,
        "ce_zero": ce_zero,
        "ce_recovered": recovered,
        "tokens": SEQUENCES * (CTX_LEN - 2),
    }


@cache
def _baselines(text: str, layer: int, device: str) -> tuple[float, float]:
    """Cross-entropy of the clean model, and with zeros instead of the block's output."""
    return _measured(text, layer, device, lambda acts: acts)[1], _measured(text, layer, device, torch.zeros_like)[1]


@torch.no_grad()
def _measured(text: str, layer: int, device: str, change: Change) -> tuple[float, float]:
    """(KL, cross-entropy) of the model whose block's outputs go through `change`, all but each first position."""
    model, kl, ce, count = _model(text, device), 0.0, 0.0, 0
    hookpoint = f"{READERS[text].blocks}.{layer}"
    for sequences, clean in zip(_sequences(text, device).split(_AT_ONCE), _clean_states(text, device), strict=True):
        not_first = (torch.arange(CTX_LEN, device=device) > 0).expand(len(sequences), -1)
        with graft(model, {hookpoint: change}, mask=not_first):
            log_probs = _log_probs(model, model(sequences, use_cache=False).last_hidden_state)
        kl += F.kl_div(log_probs, _log_probs(model, clean), reduction="sum", log_target=True).item()
        ce += F.nll_loss(log_probs, sequences[:, 2:].flatten(), reduction="sum").item()
        count += len(log_probs)
    return kl / count, ce / count


def _log_probs(model: nn.Module, states: Tensor) -> Tensor:
    """(tokens, vocab), float32, of the positions that were changed and have a next token."""
    logits = F.linear(states[:, 1:-1].flatten(0, 1), model.get_input_embeddings().weight)  # the head is tied
    return logits.float().log_softmax(1)


@cache
def _clean_states(text: str, device: str) -> list[Tensor]:
    """The model's last hidden states, a few sequences each."""
    with torch.no_grad():
        model = _model(text, device)
        return [model(part, use_cache=False).last_hidden_state for part in _sequences(text, device).split(_AT_ONCE)]


@cache
def _model(text: str, device: str) -> nn.Module:
    model = load(str(READERS[text].folder()), torch.device(device), torch.bfloat16)
    assert model.config.tie_word_embeddings
    return model


def _sequences(text: str, device: str) -> Tensor:
    rows = np.load(token_file(text), mmap_mode="r")
    return torch.from_numpy(np.array(rows[VALIDATION_SEQUENCES : VALIDATION_SEQUENCES + SEQUENCES])).to(device)
