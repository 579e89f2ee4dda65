"""The linear part of the way to the logits, whatever the family calls its final norm, and how tokens are written."""

import pytest
import torch
from tiny_models import tiny_model

from sae import lm

NORMS = {"gpt_neox": "final_layer_norm", "gpt2": "ln_f", "llama": "norm", "gemma3": "language_model.norm"}


@pytest.mark.parametrize("family", NORMS)
def test_the_scale_is_the_final_norms_and_the_matrix_the_heads(family: str) -> None:
    model = tiny_model(family, causal_lm=True)
    base = lm.base_model(model)
    norm = next(module for name, module in base.named_modules() if name.endswith(NORMS[family].rpartition(".")[2])
                and "layers." not in name and "vision" not in name)  # fmt: skip
    with torch.no_grad():
        norm.weight.add_(torch.linspace(-0.5, 0.5, len(norm.weight)))
    found = lm.find_unembedding(model)
    expected = norm.weight + 1 if family == "gemma3" else norm.weight
    assert torch.allclose(found.scale, expected.detach(), atol=1e-3)
    assert found.centred == (family in ("gpt_neox", "gpt2"))
    assert torch.equal(found.W, model.get_output_embeddings().weight)
    direction = torch.randn(found.W.shape[1], dtype=torch.float64)
    moved = direction - direction.mean() if found.centred else direction
    product = found.W.double() @ (moved * expected.double())
    assert torch.allclose(found.matrix(torch.device("cpu")).double() @ direction, product, atol=1e-2)


def test_a_model_without_such_a_head_says_so() -> None:
    with pytest.raises(lm.NoHeadError, match="has no output matrix"):
        lm.find_unembedding(tiny_model("llama"))


def test_only_a_blocks_output_adds_to_the_logits_directly() -> None:
    model = tiny_model("llama", causal_lm=True)
    assert lm.path_to_logits(model, "layers.2") == "direct"
    assert lm.path_to_logits(model, "layers.2.mlp") == "direct path only"
    several = tiny_model("gemma3_multimodal")
    assert lm.path_to_logits(several, "layers.2") == "direct"
