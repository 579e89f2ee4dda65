"""Metrics on held-out tokens are exact, however the tokens are split; massive tokens are found and named."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import make_sae

from sae import Sae
from sae.dictionary.losses import spread
from sae.evaluation.outliers import massive_note
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


@pytest.mark.parametrize("split", [[100], [1, 99], [0, 40, 60]])
@pytest.mark.parametrize("selection", ["topk", "batchtopk"])
def test_massive_tokens_are_left_out_of_one_fvu_and_of_l0_and_counted(split: list[int], selection: Any) -> None:
    sae, x = make_sae(), torch.randn(100, 48, dtype=torch.float64) + 3
    if selection == "batchtopk":
        tensors = dict(sae.state_dict()) | {"threshold": sae.encode(x).top_acts.quantile(0.4).float()}
        sae = Sae.of_tensors(replace(sae.cfg, selection=selection), tensors)
    x[[5, 77]] *= 1000
    ordinary = torch.ones(100, dtype=torch.bool)
    ordinary[[5, 77]] = False
    rules = {"h": spread(x, x).rule}
    metrics = evaluate_reconstruction({"h": sae}, ({"h": part} for part in x.split(split)), rules)["h"]
    assert metrics.massive_tokens == 2
    for found, part in ((metrics.fvu, x[ordinary]), (metrics.fvu_with_massive, x)):
        error = (part - sae(part).recon).square().sum()
        assert found == pytest.approx((error / (part - part.mean(0)).square().sum()).item(), rel=1e-5)
    fired = (sae.encode(x).top_acts > 0).sum(-1).double()
    assert metrics.l0 == pytest.approx(fired[ordinary].mean().item())
    assert (fired[~ordinary] > 2 * metrics.l0).all() == (selection == "batchtopk")


def tokens_and_acts() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(10, 10 + 8 * 64).view(8, 64), torch.randn(8 * 64, 32)


def test_ordinary_activations_give_no_note() -> None:
    tokens, acts = tokens_and_acts()
    assert massive_note({"h": acts}, tokens, torch.arange(len(acts)), spared=True) is None


def test_a_massive_first_position_is_named() -> None:
    tokens, acts = tokens_and_acts()
    acts.view(8, 64, 32)[:, 0] *= 1000
    note = massive_note({"h": acts, "other": torch.randn_like(acts)}, tokens, torch.arange(len(acts)), spared=True)
    assert note is not None and "8 of 512 tokens are massive at h (" in note and "8 of them at position 0" in note
    assert "--exclude_positions 0 leaves these out" in note and "\n" not in note


def test_a_massive_token_is_named_also_when_others_are_left_out() -> None:
    tokens, acts = tokens_and_acts()
    kept = torch.arange(len(acts))[3:]
    tokens.view(-1)[[70, 201]] = 7
    acts[[70, 201]] *= 1000
    note = massive_note({"h": acts[3:]}, tokens, kept, spared=False)
    assert note is not None and "2 of 509 tokens are massive" in note and "--exclude_tokens 7" in note


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


def test_a_single_massive_token_is_no_reason_to_leave_its_position_out() -> None:
    tokens, acts = tokens_and_acts()
    acts[70] *= 1000
    note = massive_note({"h": acts}, tokens, torch.arange(len(acts)), spared=True)
    assert note is not None and "at position 6)" in note and "--exclude_positions 6" not in note
