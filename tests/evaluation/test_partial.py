"""FVU at every prefix and budget, and without the skip connection, is that of the part alone."""

from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokens
from torch import Tensor

from sae import Sae, SaeConfig, evaluate
from sae.dictionary.partial import partial_names
from sae.dictionary.wiring import Pair
from sae.evaluation.reconstruction import evaluate_reconstruction
from sae.lm import harvest

KINDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "topk": ({}, []),
    "prefixes": ({"prefixes": [8, 24]}, ["first 8", "first 24"]),
    "budgets": ({"budgets": [1, 3]}, ["top 1", "top 3"]),
    "batchtopk with prefixes": ({"prefixes": [8, 24], "selection": "batchtopk"}, ["first 8", "first 24"]),
    "skip": ({"transcode": True, "skip_connection": True}, ["without skip"]),
    "all": ({"transcode": True, "skip_connection": True, "budgets": [2]}, ["top 2", "without skip"]),
}


def dictionary(options: dict[str, Any]) -> Sae:
    torch.manual_seed(0)
    sae = Sae(32, SaeConfig(num_latents=96, k=6, **options), **({"d_out": 32} if "transcode" in options else {}))
    for tensor in (sae.encoder.bias, sae.b_dec, *([] if sae.W_skip is None else [sae.W_skip])):
        tensor.data = 0.1 * torch.randn_like(tensor)
    if sae.threshold is not None:
        sae.threshold.fill_(0.5)
    return sae


def alone(sae: Sae, part: str, x: Tensor) -> Tensor:
    """The reconstruction by a part, dense."""
    acts, indices = sae.encode(x)
    dense = torch.zeros(len(x), sae.num_latents).scatter_(1, indices, acts)
    word, number = part.split()[0], int(part.split()[-1]) if part[-1].isdigit() else 0
    if word == "first":
        dense[:, number:] = 0
    if word == "top":
        dense = dense * (dense >= dense.topk(number, dim=1).values[:, -1:])
    skip = 0 if sae.W_skip is None or word == "without" else x @ sae.W_skip.T
    return dense @ sae.W_dec + sae.b_dec + skip


def fvu(recon: Tensor, y: Tensor) -> float:
    return ((recon - y).square().sum() / (y - y.mean(0)).square().sum()).item()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_of_given_activations(kind: str) -> None:
    options, parts = KINDS[kind]
    sae, x, y = dictionary(options), torch.randn(40, 32), torch.randn(40, 32)
    assert partial_names(sae) == parts
    y = y if "transcode" in options else x
    given = [{"h": Pair(x[:13], y[:13])}, {"h": Pair(x[13:], y[13:])}]
    found = evaluate_reconstruction({"h": sae}, given)["h"].fvu_at
    expected = {part: pytest.approx(fvu(alone(sae, part, x), y), rel=1e-5) for part in parts}
    assert (found or {}) == expected


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_of_a_model_s_activations(kind: str) -> None:
    options, parts = KINDS[kind]
    sae, model, tokens = dictionary(options), tiny_model("gpt_neox"), tiny_tokens(5, 7)
    hookpoint = "layers.1.mlp" if "transcode" in options else "layers.1"
    metrics = evaluate(model, tokens, {hookpoint: sae}, batch_size=2)[hookpoint].metrics
    seen = harvest(
        model, torch.as_tensor(tokens), [f"{hookpoint}.input", hookpoint] if "transcode" in options else [hookpoint]
    )
    y = seen[hookpoint].flatten(0, 1).float()
    x = seen[f"{hookpoint}.input"].flatten(0, 1).float() if "transcode" in options else y
    assert {name for name in metrics if name.startswith("fvu/")} == {f"fvu/{part}" for part in parts}
    for part in parts:
        assert metrics[f"fvu/{part}"] == pytest.approx(fvu(alone(sae, part, x), y), rel=1e-4)
