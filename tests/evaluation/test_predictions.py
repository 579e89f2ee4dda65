"""Predictions are compared as plain formulas over whole tensors of logits say, however few at a time."""

import math

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_model, tiny_tokens
from torch import nn

from sae import lm
from sae.evaluation import predictions
from sae.evaluation.predictions import compare_predictions, largest
from sae.ops import native


@pytest.fixture(params=["compiled", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(native, "library", lambda: None)
        monkeypatch.setattr("sae.ops.native.logits.library", lambda: None)
    elif native.library() is None:
        pytest.skip("this machine has no C compiler")
    return str(request.param)


@pytest.mark.usefixtures("way")
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


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_logits_diverge_by_nothing_and_what_is_no_number_stays_so(dtype: torch.dtype) -> None:
    clean, tokens = (5 * torch.randn(2, 6, 1000)).to(dtype), torch.randint(1000, (2, 6))
    other = clean.clone()
    other[1, 2, 7], other[1, 4, 9] = math.nan, -math.inf
    head = lm.Head(nn.Identity(), None)
    found, _ = compare_predictions(head, tokens, lm.Hidden(clean), {"it": lm.Hidden(other)}, 1000)
    kl = found["it"].kl
    assert not kl[0].any() and found["it"].agree[0].all()
    assert kl[1, 2].isnan() and kl[1, 4] == math.inf and not kl[1, [0, 1, 3, 5]].any()
    again, _ = compare_predictions(head, tokens, lm.Hidden(other), {"it": lm.Hidden(clean)}, 1000)
    assert again["it"].kl[1, 2].isnan() and again["it"].kl[1, 4].isfinite()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("vocab", [2, 50, 5000])
@pytest.mark.parametrize(("offset", "shift"), [(0, 0), (-100, 50), (0, 1000), (1000, 50), (1000, 1000), (10_000, 0)])
def test_what_all_logits_have_in_common_changes_nothing(offset: float, shift: float, vocab: int) -> None:
    clean = torch.randn(1, 20, vocab) * 3 + offset
    other, tokens = clean + 0.05 * torch.randn(1, 20, vocab) + shift, torch.randint(vocab, (1, 20))
    head = lm.Head(nn.Identity(), None)
    found, ce = compare_predictions(head, tokens, lm.Hidden(clean), {"it": lm.Hidden(other)}, vocab)
    logs, others = clean.double().log_softmax(-1), other.double().log_softmax(-1)
    torch.testing.assert_close(found["it"].kl.double(), (logs.exp() * (logs - others)).sum(-1), atol=1e-5, rtol=1e-4)
    expected = -logs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(ce[:, :-1].double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.usefixtures("way")
def test_logits_in_bf16_are_compared_as_their_float32() -> None:
    clean, other = ((4 * torch.randn(3, 5, 777)).bfloat16() for _ in range(2))
    tokens, head = torch.randint(777, (3, 5)), lm.Head(nn.Identity(), None)
    half, ce = compare_predictions(head, tokens, lm.Hidden(clean), {"it": lm.Hidden(other)}, 777)
    full, its = compare_predictions(head, tokens, lm.Hidden(clean.float()), {"it": lm.Hidden(other.float())}, 777)
    torch.testing.assert_close((half["it"], ce), (full["it"], its), atol=1e-5, rtol=1e-5)


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
