"""A model in wrappers is the model inside: named, read, grafted, measured and trained on as that is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import make_sae
from tiny_models import logits, tiny_model, tiny_tokens
from torch import Tensor, nn

import sae
from sae import SaeConfig, SaeTrainer, TrainConfig, graft, lm
from sae.lm import base_model, compile_blocks, harvest, resolve_hookpoints, unwrapped

BLOCK = "layers.1"
pytestmark = [
    pytest.mark.usefixtures("compiler_starts_anew"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # by PEFT
]


class Tuner(nn.Module):
    """Around a model as PEFT's tuners are: it calls the model's forward past its hooks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.peft_config = model, {"default": None}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.forward(*args, **kwargs)


class Adapted(Tuner):
    """And as PeftModel is: a wrapper around the tuner, whose base_model that is."""

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)
        self.base_model, self.peft_config = Tuner(model), {"default": None}

    def __getattr__(self, name: str) -> Any:
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            return getattr(nn.Module.__getattr__(self, "base_model"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


class Bridge(nn.Module):
    """Around a model as TransformerLens's bridge is, which holds it beside its own modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        vars(self)["original_model"] = model

    def forward(self, input_ids: Tensor) -> Any:
        return vars(self)["original_model"](input_ids=input_ids)


def compiled(model: nn.Module) -> nn.Module:
    """Compiled, and run before, so that there is code without hooks."""
    wrapper: Any = torch.compile(model, backend="eager")
    logits(wrapper, tiny_tokens())
    return wrapper


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    logits(model, tiny_tokens())
    return model


def compiled_inside(model: nn.Module) -> nn.Module:
    for block in base_model(model).layers:  # type: ignore[union-attr]
        block.compile(backend="eager")
    logits(model, tiny_tokens())
    return model


def lora(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False, lora_dropout=0.5)
    return peft.get_peft_model(model, config).eval()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "compiled inside": compiled_inside,
    "parallel": nn.DataParallel,
    "like PEFT": Adapted,
    "LoRA": lora,
    "like a bridge": Bridge,
    "several": lambda model: nn.DataParallel(compiled(Adapted(model))),
}


def wrapped(name: str) -> nn.Module:
    return WRAPPERS[name](tiny_model("llama", causal_lm=True))


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_grafted_reaches_every_forward_of_the_wrapper(name: str) -> None:
    model, tokens = wrapped(name), tiny_tokens()
    clean = logits(model, tokens)
    inner = unwrapped(model)
    assert type(inner).__name__ == "LlamaForCausalLM" and resolve_hookpoints(model)[1] == BLOCK
    with graft(model, {BLOCK: lambda x: -x}):
        first, second = logits(model, tokens), logits(model, tokens)
    with graft(inner, {BLOCK: lambda x: -x}):
        expected = logits(inner, tokens)
    assert torch.equal(first, expected) and torch.equal(second, expected)
    assert not torch.allclose(first, clean)
    torch.testing.assert_close(logits(model, tokens), clean)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_model_is_harvested_and_measured_as_the_one_inside(name: str) -> None:
    model, tokens = wrapped(name), tiny_tokens(3, 9)
    inner = unwrapped(model)
    assert torch.equal(harvest(model, tokens, [BLOCK])[BLOCK], harvest(inner, tokens, [BLOCK])[BLOCK])
    saes = {BLOCK: make_sae(32, 96, 5, torch.float32)}
    found = sae.evaluate(model, tokens, saes)[BLOCK].metrics
    p = logits(inner, tokens).double().log_softmax(-1)
    with graft(inner, saes):
        q = logits(inner, tokens).double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    assert kl > 1e-3 and found["kl_div_with_sae"] == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize("loss_fn", ["fvu", "kl"])
@pytest.mark.parametrize("name", ["like PEFT", "LoRA", "several"])
def test_training_on_a_wrapped_model_is_that_on_the_one_inside(tmp_path: Path, name: str, loss_fn: Any) -> None:
    model = wrapped(name)
    weights = []
    for each in (model, unwrapped(model)):
        cfg = TrainConfig(SaeConfig(num_latents=64, k=4), batch_size=4, loss_fn=loss_fn, layers=[1], log_to_wandb=False,
                          save_dir=str(tmp_path), reconstruct_first=0.0 if loss_fn == "kl" else None)  # fmt: skip
        trainer = SaeTrainer(cfg, tiny_tokens(100, 9), each)
        trainer.initialise()
        trainer.train_step()
        weights.append(trainer.saes[BLOCK].W_dec.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("method", ["generate", "forward"])
@pytest.mark.parametrize("name", ["like PEFT", "LoRA"])
def test_an_adapted_models_generation_is_steered_at_every_token(name: str, method: str) -> None:
    model, calls = wrapped(name), []
    with graft(model, {BLOCK: lambda x: calls.append(x) or x}):
        if method == "generate":
            model.generate(input_ids=tiny_tokens(1, 5), max_new_tokens=4, min_new_tokens=4, do_sample=False)
        else:
            for _ in range(4):
                model(input_ids=tiny_tokens(1, 5))
    assert len(calls) == 4


def test_blocks_that_we_compiled_stay_compiled_when_they_are_grafted() -> None:
    model, tokens, graphs = tiny_model("llama", causal_lm=True), tiny_tokens(), []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_blocks(model, backend=backend)
    with graft(model, {BLOCK: lambda x: -x}):
        found = logits(model, tokens)
    plain = tiny_model("llama", causal_lm=True)
    with graft(plain, {BLOCK: lambda x: -x}):
        torch.testing.assert_close(found, logits(plain, tokens))
    assert graphs


def test_a_learned_prompt_is_refused_not_left_out() -> None:
    class Config:
        is_prompt_learning = True

    model = Adapted(tiny_model("llama", causal_lm=True))
    model.active_peft_config = Config()
    with pytest.raises(ValueError, match="must read nothing but its tokens, got one with a learned prompt"):
        harvest(model, tiny_tokens(), [BLOCK])


def test_a_real_learned_prompt_is_refused() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny_model("llama", causal_lm=True), config)
    with pytest.raises(ValueError, match="learned prompt .PeftModelForCausalLM, PromptTuningConfig"):
        lm.find_head(model)


def test_copies_on_several_devices_are_refused() -> None:
    model = nn.DataParallel(tiny_model("llama", causal_lm=True))
    model.device_ids = [0, 1]
    with (
        pytest.raises(ValueError, match=r"one device to be grafted, got a DataParallel over 2; give its .module"),
        graft(model, {BLOCK: lambda x: x}),
    ):
        pass


def test_what_is_no_model_of_transformers_is_refused_in_one_line() -> None:
    """A bridge of TransformerLens, or any module."""
    saes = {"0": make_sae(32, 96, 5, torch.float32)}
    with pytest.raises(
        ValueError, match="the model must be one of transformers, .* got Sequential; give the model that"
    ):
        sae.evaluate(nn.Sequential(nn.Embedding(320, 32), nn.Linear(32, 32)), tiny_tokens(), saes)
