"""A model's fingerprint: the same for the same weights, whatever holds them, and another for others."""

import copy

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from tiny_types import tiny_config
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM

from sae import lm
from sae.runs.folder import may_be_same


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fingerprint_is_of_the_weights_not_of_what_holds_them(family: str) -> None:
    model = tiny_model(family)
    expected = lm.fingerprint(model)
    assert lm.fingerprint(copy.deepcopy(model).to(torch.bfloat16)) == expected
    if family != "bert":
        headed = tiny_model(family, causal_lm=True)
        headed.base_model.load_state_dict(model.state_dict())
        assert lm.fingerprint(headed) == expected
    assert lm.fingerprint(tiny_model(family, seed=1)) != expected


def test_blocks_that_run_several_times_are_all_that_counts_of_such_a_model() -> None:
    torch.manual_seed(0)
    headed = AutoModelForMaskedLM.from_config(tiny_config("albert"))
    model = AutoModel.from_config(tiny_config("albert"))  # which has a pooler besides
    assert lm.fingerprint(model) != lm.fingerprint(headed)
    model.load_state_dict(headed.base_model.state_dict(), strict=False)
    assert lm.fingerprint(model) == lm.fingerprint(headed)


def test_a_run_of_an_earlier_version_is_not_said_to_have_other_weights() -> None:
    """It counted more than the blocks of a model that runs them again and again."""
    now = lm.fingerprint(AutoModel.from_config(tiny_config("albert")))
    assert now.startswith("repeated-") and lm.fingerprint(tiny_model("gpt2")).startswith("weights-")
    assert may_be_same("weights-" + now.partition("-")[2], now)
    assert not may_be_same(now, lm.fingerprint(AutoModel.from_config(tiny_config("albert"))))


def test_a_padded_embedding_is_the_same_model_and_one_finetuned_matrix_is_another() -> None:
    model = tiny_model("llama")
    expected = lm.fingerprint(model)
    model.resize_token_embeddings(384)
    assert lm.fingerprint(model) == expected
    with torch.no_grad():
        model.get_submodule("layers.1.mlp.down_proj").weight.mul_(1.01)
    assert lm.fingerprint(model) != expected


def test_a_model_without_a_list_of_blocks_has_one_and_one_without_its_weights_at_hand_has_none() -> None:
    assert lm.fingerprint(nn.Sequential(nn.Linear(3, 3))) != lm.fingerprint(nn.Sequential(nn.Linear(3, 3)))
    with torch.device("meta"):
        assert lm.fingerprint(tiny_model("gpt2")) == ""


def test_weights_in_8_bits_have_a_fingerprint_of_another_kind() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    assert lm.fingerprint(model).startswith("8bit-")
