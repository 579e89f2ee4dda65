"""What replaced activations are to the ones before, over all tokens at once; and an error that is one line."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from sae import graft


def kl_of(model: nn.Module, tokens: Tensor, replaced: Mapping[str, Tensor]) -> float:
    """Mean over tokens of KL(clean ‖ replaced), in nats."""
    with torch.no_grad():
        clean = model(tokens).logits.log_softmax(-1)
        with graft(model, {name: lambda x, name=name: replaced[name] for name in replaced}):
            grafted = model(tokens).logits.log_softmax(-1)
    return float((clean.exp() * (clean - grafted)).sum(-1).mean())


def fvu_of(replaced: Tensor, y: Tensor) -> float:
    """FVU of activations (batch, seq, d)."""
    replaced, y = replaced.flatten(0, 1), y.flatten(0, 1)
    return float((replaced - y).square().sum() / (y - y.mean(0)).square().sum())


def raises_one_line(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
