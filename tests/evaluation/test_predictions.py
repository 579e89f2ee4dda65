"""Predictions are compared as plain formulas over whole tensors of logits say, however few at a time."""

import math

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_model, tiny_tokens
from torch import nn

from sae import lm
from sae.evaluation import predictions
from sae.evaluation.predictions import compare_predictions, largest


@pytest.mark.parametrize("impossible", [False, True])
@pytest.mark.parametrize("vocab", [7, 300])
@pytest.mark.parametrize("in_cache", [1, 1000, 2**18])
def test_kl_agreement_and_cross_entropy_are_the_formulas(
    in_cache: int, vocab: int, impossible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Impossible tokens have a logit of -inf in both, and one that is only too unlikely for float32 in the clean."""
    monkeypatch.setattr(predictions, "_IN_CACHE", in_cache)
    tokens = torch.randint(vocab, (2, 5))
    clean, other = torch.randn(2, 5, vocab), torch.randn(2, 5, vocab)
    if impossible:
        tokens.fill_(0)
        clean[..., 3] = other[..., 3] = other[..., 4] = -math.inf
        clean[..., 4] = -200
    head = lm.Head(nn.Identity(), None)  # whose hidden states are logits
    found, ce = compare_predictions(head, tokens, lm.Hidden(clean), {"it": lm.Hidden(other)}, vocab)
    p, q = clean.double().softmax(-1), other.double().log_softmax(-1)
    terms = p * (clean.double().log_softmax(-1) - q)
    kl = terms.where(p > 1e-80, 0).sum(-1)
    torch.testing.assert_close(found["it"].kl.double(), kl, atol=1e-6, rtol=1e-5)
    assert torch.equal(found["it"].agree, clean.argmax(-1) == other.argmax(-1))
    for mine, logits in ((ce, clean), (found["it"].ce, other)):
        expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        torch.testing.assert_close(mine[:, :-1].flatten(), expected)
        assert not mine[:, -1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 255, 256, 300, 512, 1025])
def test_the_largest_is_argmax_and_the_first_of_equals(columns: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, columns).mul(2).round().to(dtype)
    assert torch.equal(largest(x), x.argmax(-1))
    assert not largest(torch.zeros(3, columns)).any()


def test_a_head_multiplies_by_its_matrix_once_and_not_once_for_each_sequence() -> None:
    """Of states that are not one block PyTorch makes a batched product, for which it copies the matrix each time."""
    model, seen = tiny_model("llama", causal_lm=True), []
    head, tokens = lm.find_head(model), tiny_tokens(3, 8)
    model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    with torch.no_grad():
        assert head.logits(tokens, head.run(tokens), slice(2, 5)).shape == (3, 3, VOCAB_SIZE)
    assert seen == [True]
