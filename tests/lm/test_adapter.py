"""The folder of a PEFT adapter is the model that it was trained on, with what it has learned in the weights."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny, tiny_tokenizer, tiny_tokens
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from sae.lm import (
    find_head,
    fingerprint,
    graft,
    harvest,
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    resolve_hookpoints,
)
from sae.lm.adapter import adapter_in

BLOCKS = ["layers.0", "layers.1", "layers.2"]
KINDS = {
    "LoraConfig": {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False},
    "IA3Config": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # by PEFT


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), "llama")


def adapted(base: Path, folder: Path, kind: str = "LoraConfig", *, head: bool = True) -> nn.Module:
    """A model with an adapter of random weights, which is saved."""
    peft = pytest.importorskip("peft")
    model = (AutoModelForCausalLM if head else AutoModel).from_pretrained(base)
    config: Any = getattr(peft, kind)(task_type="CAUSAL_LM" if head else "FEATURE_EXTRACTION", **KINDS[kind])
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name or "ia3_" in name:
                weight.normal_(1, 0.5)
    wrapped.save_pretrained(folder)
    return wrapped


def load(folder: Path, *, head: bool = False, **options: Any) -> Any:
    return load_model(str(folder), device="cpu", dtype=torch.float32, head=head, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained_with_head", [True, False])
def test_what_is_read_and_grafted_is_the_adapted_model(
    base: Path, tmp_path: Path, kind: str, trained_with_head: bool
) -> None:
    wrapped, tokens = adapted(base, tmp_path, kind, head=trained_with_head), tiny_tokens()
    expected = harvest(wrapped, tokens, BLOCKS)
    plain = harvest(load(base), tokens, BLOCKS)
    assert resolve_hookpoints(load_skeleton(str(tmp_path))) == BLOCKS
    for head in (False, True):
        model = load(tmp_path, head=head)
        assert not any(weight.requires_grad for weight in model.parameters())
        found = harvest(model, tokens, BLOCKS)
        for name in BLOCKS:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
            assert not torch.allclose(found[name], plain[name], atol=1e-2)
    assert find_head(model).is_causal
    if trained_with_head:
        with torch.no_grad():
            torch.testing.assert_close(model(tokens).logits, wrapped(tokens).logits, rtol=1e-3, atol=1e-3)
            with graft(model, {"layers.1": lambda x: -x}), graft(wrapped, {"layers.1": lambda x: -x}):
                torch.testing.assert_close(model(tokens).logits, wrapped(tokens).logits, rtol=1e-3, atol=1e-3)


def test_its_config_and_tokenizer_are_the_models_or_its_own(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path)
    assert load_config(str(tmp_path)).model_type == "llama"
    assert len(load_tokenizer(str(tmp_path))) == len(load_tokenizer(str(base)))
    tiny_tokenizer(260).save_pretrained(tmp_path)
    assert len(load_tokenizer(str(tmp_path))) == 260


def test_another_adapter_is_another_model(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path / "one")
    adapted(base, tmp_path / "other", "IA3Config")
    found = {fingerprint(load(folder)) for folder in (base, tmp_path / "one", tmp_path / "other")}
    assert len(found) == 3


def test_what_is_no_adapter_of_that_model_is_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"holds an adapter that cannot be loaded|damaged weights file") as told:
        load(tmp_path)
    assert "\n" not in str(told.value)
    path.write_bytes(content)
    other = save_tiny(tmp_path / "gpt2", "gpt2")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(other)}))
    with pytest.raises(ValueError, match=r"holds an adapter that cannot be loaded") as told:
        load(tmp_path)
    assert "\n" not in str(told.value)


def test_weights_that_the_adapters_config_does_not_know_are_an_error(base: Path, tmp_path: Path) -> None:
    adapted(base, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    with pytest.raises(ValueError, match=r"6 of its weights are not those for .* \(base_model.*v_proj"):
        load(tmp_path)


def test_a_learned_prompt_and_8_bits_are_refused(base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="PromptTuningConfig adds a prompt, which no weights can hold; use LoRA"):
        load(tmp_path)
    with pytest.raises(ValueError, match="--load_in_8bit must not be used with an adapter"):
        load(tmp_path, load_in_8bit=True)


def test_without_peft_the_way_out_is_told(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    for action in (load, lambda folder: load_skeleton(str(folder))):
        with pytest.raises(ValueError, match=r"needs peft, which is not installed; pip install peft, or merge it"):
            action(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must have a readable adapter_config.json, a JSON object"),
        ("{", "must have a readable adapter_config.json, a JSON object"),
        ("{}", "its adapter_config.json must name base_model_name_or_path"),
        ('{"base_model_name_or_path": 7}', "its adapter_config.json must name base_model_name_or_path"),
        (" " * 2**20 + "{}", "must have a readable adapter_config.json"),
    ],
)
def test_a_damaged_config_is_told_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_skeleton(str(tmp_path))


def test_an_adapter_of_an_adapter_and_of_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    with pytest.raises(ValueError, match="must be an adapter of a model, and .* is an adapter; merge that first"):
        load_config(str(tmp_path))


def test_a_folder_with_a_model_and_an_adapter_is_refused_and_one_with_the_models_config_alone_is_not(
    base: Path, tmp_path: Path
) -> None:
    assert adapter_in(str(base)) is None
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    shutil.copy(base / "config.json", tmp_path)
    assert adapter_in(str(tmp_path)) == (str(tmp_path), str(base), None)
    shutil.copy(base / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"has model.safetensors and adapter_config.json; move one of them away"):
        load(tmp_path)
