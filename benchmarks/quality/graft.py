"""What a reconstruction does to the language model that gets it instead of the activations of a block.

One definition for every library: each writes its x̂ of the same test tokens to a file, and here they are put into
the model, at every position but a sequence's first, which keeps its activation, as in training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.language_models import load
from benchmarks.quality.data import BLOCK_SEQUENCES, CTX_LEN, READERS, VALIDATION_SEQUENCES, token_file
from sae.lm import compute_dtype, graft

SEQUENCES = BLOCK_SEQUENCES - VALIDATION_SEQUENCES
"""All test sequences."""
FIRST_ROW = VALIDATION_SEQUENCES * (CTX_LEN - 1)
_AT_ONCE = 4  # sequences
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TestSequences:
    """The first test sequences of a text, and where its model reads them."""

    text: str
    count: int = SEQUENCES
    device: str = "cpu"

    @property
    def end_row(self) -> int:
        """Of the activations, where those of these sequences end; they begin at FIRST_ROW."""
        return FIRST_ROW + self.count * (CTX_LEN - 1)


def grafted(tests: TestSequences, layer: int, recon: Tensor) -> dict[str, float]:
    """`recon` (tests.count · (CTX_LEN − 1), d_in) in place of the block's output.

    `kl` is KL(clean ‖ grafted) and `ce` the cross-entropy with the next token, in nats, means over the positions that
    were changed and have a next token; `ce_recovered` is (ce_zero − ce) / (ce_zero − ce_clean), where `ce_zero` is
    with zeros in the same places (SAEBench's `ce_loss_score`).
    """
    parts = iter(recon.unflatten(0, (tests.count, CTX_LEN - 1)).split(_AT_ONCE))
    ce_clean, ce_zero = _baselines(tests, layer)
    kl, ce = _measured(tests, layer, lambda acts: torch.cat([acts[:, :1], next(parts).to(acts)], 1))
    recovered = (ce_zero - ce) / (ce_zero - ce_clean)
    return {
        "kl": kl,
        "ce": ce,
        "ce_clean": ce_clean,
        "ce_zero": ce_zero,
        "ce_recovered": recovered,
        "tokens": tests.count * (CTX_LEN - 2),
    }


@cache
def _baselines(tests: TestSequences, layer: int) -> tuple[float, float]:
    """Cross-entropy of the clean model, and with zeros instead of the block's output."""
    return _measured(tests, layer, lambda acts: acts)[1], _measured(tests, layer, torch.zeros_like)[1]


@torch.no_grad()
def _measured(tests: TestSequences, layer: int, change: Change) -> tuple[float, float]:
    """(KL, cross-entropy) of the model whose block's outputs go through `change`, all but each first position."""
    model, kl, ce, count = _model(tests), 0.0, 0.0, 0
    hookpoint = f"{READERS[tests.text].blocks}.{layer}"
    for sequences, clean in zip(_sequences(tests).split(_AT_ONCE), _clean_states(tests), strict=True):
        not_first = (torch.arange(CTX_LEN, device=tests.device) > 0).expand(len(sequences), -1)
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
def _clean_states(tests: TestSequences) -> list[Tensor]:
    """The model's last hidden states, a few sequences each."""
    with torch.no_grad():
        model = _model(tests)
        return [model(part, use_cache=False).last_hidden_state for part in _sequences(tests).split(_AT_ONCE)]


@cache
def _model(tests: TestSequences) -> nn.Module:
    device = torch.device(tests.device)
    model = load(str(READERS[tests.text].folder()), device, compute_dtype(device))
    assert model.config.tie_word_embeddings
    return model


def _sequences(tests: TestSequences) -> Tensor:
    rows = np.load(token_file(tests.text), mmap_mode="r")
    return torch.from_numpy(np.array(rows[VALIDATION_SEQUENCES : VALIDATION_SEQUENCES + tests.count])).to(tests.device)
