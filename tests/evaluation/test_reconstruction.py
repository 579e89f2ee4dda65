"""Metrics on held-out tokens are exact, however the tokens are split; outliers are found and named."""

import math

import pytest
import torch
from oracle import make_sae

from sae.evaluation.outliers import outlier_warning
from sae.evaluation.reconstruction import evaluate_reconstruction


@pytest.mark.parametrize("split", [[100], [1, 99], [0, 40, 60]])
def test_metrics_are_those_of_all_tokens_together(split: list[int]) -> None:
    sae, x = make_sae(), torch.randn(100, 48, dtype=torch.float64) + 3
    metrics = evaluate_reconstruction({"h": sae}, ({"h": part} for part in x.split(split)))["h"]
    out = sae(x)
    fired = torch.zeros(96).index_add_(0, out.top_indices.flatten(), (out.top_acts > 0).flatten().float())
    assert metrics.tokens == 100
    assert metrics.fvu == pytest.approx(((x - out.recon).square().sum() / (x - x.mean(0)).square().sum()).item())
    assert metrics.l0 == pytest.approx((out.top_acts > 0).sum().item() / 100)
    assert metrics.unused_fraction == pytest.approx((fired == 0).float().mean().item())


def tokens_and_acts() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(10, 10 + 8 * 64).view(8, 64), torch.randn(8 * 64, 32)


def test_ordinary_activations_give_no_warning() -> None:
    tokens, acts = tokens_and_acts()
    assert outlier_warning(acts, tokens, torch.arange(len(acts))) is None


def test_a_large_first_position_is_named() -> None:
    tokens, acts = tokens_and_acts()
    acts.view(8, 64, 32)[:, 0] *= 1000
    warning = outlier_warning(acts, tokens, torch.arange(len(acts)))
    assert warning is not None and "--exclude_positions 0" in warning and "of 512 tokens carry" in warning


def test_a_large_token_is_named_also_when_others_are_left_out() -> None:
    tokens, acts = tokens_and_acts()
    kept = torch.arange(len(acts))[3:]
    tokens.view(-1)[[70, 201]] = 7
    acts[[70, 201]] *= 1000
    warning = outlier_warning(acts[3:], tokens, kept)
    assert warning is not None and "2 of 509 tokens carry" in warning and "--exclude_tokens 7" in warning


def test_one_token_and_equal_tokens_have_no_fvu_but_an_l0() -> None:
    sae = make_sae(dtype=torch.float32)
    for x in (torch.randn(1, 48) + 100, (torch.randn(1, 48) + 100).expand(50, 48)):
        metrics = evaluate_reconstruction({"h": sae}, [{"h": x}, {"h": x}])["h"]
        assert not math.isfinite(metrics.fvu) and 0 <= metrics.l0 <= 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_dictionary_in_half_precision_is_measured_in_float32(dtype: torch.dtype) -> None:
    sae, x = make_sae(dtype=torch.float32).to(dtype), 300 * torch.randn(500, 48) + 50
    metrics = evaluate_reconstruction({"h": sae}, [{"h": x[:200]}, {"h": x[200:]}])["h"]
    assert metrics.fvu == pytest.approx(sae(x).fvu.item(), rel=1e-5)
