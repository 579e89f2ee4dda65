"""Logits in two halves are those of the whole forward, whatever the model's forward calls; and what a head is."""

from collections.abc import Callable

import pytest
import torch
from oracle import make_sae
from tiny_models import FAMILIES, IDS, VOCAB_SIZE, logits, tiny_config, tiny_model, tiny_tokens
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertGenerationConfig,
    BigBirdConfig,
    BlenderbotConfig,
    LlamaConfig,
    MarianConfig,
    OPTConfig,
    PegasusConfig,
    PLBartConfig,
    PreTrainedConfig,
    ProphetNetConfig,
    Qwen2VLConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import sae
from sae import graft, lm
from sae.lm import find_head, harvest, resolve_hookpoints, widths

SIZES = {"vocab_size": VOCAB_SIZE, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {
    "vocab_size": VOCAB_SIZE, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "dropout": 0.0, "is_decoder": True,
    "is_encoder_decoder": False,
}  # fmt: skip


def opt() -> PreTrainedConfig:
    return OPTConfig(hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, dropout=0.0, **SIZES, **IDS)


def prophetnet() -> PreTrainedConfig:
    layers = {"num_decoder_layers": 2, "num_encoder_layers": 2, "num_decoder_attention_heads": 4, "decoder_ffn_dim": 48}
    return ProphetNetConfig(vocab_size=VOCAB_SIZE, hidden_size=32, is_decoder=True, dropout=0.0, **layers)


def qwen2_vl() -> PreTrainedConfig:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2, "rope_parameters": rope, **SIZES}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1}
    return Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=3, video_token_id=4)


MODELS: dict[str, tuple[Callable[[], PreTrainedConfig], type]] = {
    "opt": (opt, AutoModelForCausalLM),
    "marian": (lambda: MarianConfig(**DECODER, pad_token_id=1), AutoModelForCausalLM),
    "pegasus": (lambda: PegasusConfig(**DECODER), AutoModelForCausalLM),
    "blenderbot": (lambda: BlenderbotConfig(**DECODER), AutoModelForCausalLM),
    "plbart": (lambda: PLBartConfig(**DECODER), AutoModelForCausalLM),
    "prophetnet": (prophetnet, AutoModelForCausalLM),
    "qwen2_vl": (qwen2_vl, AutoModelForImageTextToText),
    "gemma3_multimodal": (lambda: tiny_config("gemma3_multimodal"), AutoModelForImageTextToText),
    "llama": (lambda: tiny_config("llama"), AutoModelForCausalLM),
    "bert": (lambda: tiny_config("bert"), AutoModelForMaskedLM),
}
"""Whose forward calls the base model, calls what is inside it, or reads more of it than the hidden states."""


def build(config: PreTrainedConfig, auto: type = AutoModelForCausalLM) -> nn.Module:
    """Weights so large that every module moves the logits."""
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(5)
    return model


def model_of(name: str) -> nn.Module:
    make, auto = MODELS[name]
    return build(make(), auto)


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_changed_states_are_the_whole_forwards(name: str) -> None:
    model, tokens = model_of(name), tiny_tokens(2, 9)
    head, block = find_head(model), resolve_hookpoints(model)[-1]
    assert head.halves == (name != "prophetnet")  # its logits are of other states than the last hidden ones
    clean = logits(model, tokens)
    with torch.no_grad(), graft(model, {block: lambda x: x.roll(1, -1)}):
        whole, hidden = logits(model, tokens), head.run(tokens)
    assert not torch.allclose(whole, clean, rtol=1e-2)
    with torch.no_grad():
        for part in (slice(0, 4), slice(4, 9), slice(8, 9)):
            torch.testing.assert_close(head.logits(tokens, hidden, part), whole[:, part])
            torch.testing.assert_close(head.logits(tokens, head.run(tokens), part), clean[:, part])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "prophetnet"])  # whose blocks see 3 seq vectors
def test_the_divergence_that_is_measured_is_that_of_two_whole_forwards(name: str) -> None:
    model, tokens = model_of(name), tiny_tokens(4, 9)
    blocks = resolve_hookpoints(model)
    saes = {each: make_sae(d_in, 96, 5, torch.float32) for each, d_in in widths(model, blocks).items()}
    found = sae.evaluate(model, tokens, saes)
    for hookpoint, grafted in {**{each: {each: saes[each]} for each in saes}, "all": saes}.items():
        p = logits(model, tokens).double().log_softmax(-1)
        with graft(model, grafted):
            q = logits(model, tokens).double().log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1).mean().item()
        assert kl > 1e-3
        assert found[hookpoint].metrics["kl_div_with_sae"] == pytest.approx(kl, rel=1e-3), hookpoint


@pytest.mark.parametrize("name", ["opt", "marian", "llama"])
def test_every_token_that_is_generated_is_steered(name: str) -> None:
    model, calls = model_of(name), []
    block = resolve_hookpoints(model)[0]
    with graft(model, {block: lambda x: calls.append(x) or x}):
        model.generate(tiny_tokens(1, 5), max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=False)
    assert [x.shape[1] for x in calls] == [5, 6, 7, 8]


def test_a_forward_that_was_broken_off_does_not_keep_the_next_from_being_grafted() -> None:
    model, tokens, calls = model_of("opt"), tiny_tokens(1, 5), []

    def fail_once(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) == 1:
            raise KeyError
        return x

    with graft(model, {"decoder.layers.0": fail_once}):
        with pytest.raises(KeyError):
            model(tokens)
        model(tokens)
        harvest(model, tokens, ["decoder.layers.1.input"])  # which stops in the middle
        model.model.decoder(tokens)
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("config", "auto", "causal"),
    [
        (lambda: BertGenerationConfig(hidden_size=32, intermediate_size=48, **SIZES), AutoModelForCausalLM, False),
        (
            lambda: BertGenerationConfig(hidden_size=32, intermediate_size=48, is_decoder=True, **SIZES),
            AutoModelForCausalLM,
            True,
        ),
        (
            lambda: BertConfig(hidden_size=32, intermediate_size=48, is_decoder=True, **SIZES),
            AutoModelForCausalLM,
            True,
        ),
        (lambda: BertConfig(hidden_size=32, intermediate_size=48, **SIZES), AutoModelForMaskedLM, False),
        (opt, AutoModelForCausalLM, True),
        (qwen2_vl, AutoModelForImageTextToText, True),
        (
            lambda: LlamaConfig(hidden_size=32, intermediate_size=48, attention_dropout=0.0, **SIZES),
            AutoModelForCausalLM,
            True,
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whether_a_token_sees_later_ones_is_asked_of_the_model(
    config: Callable[[], PreTrainedConfig], auto: type, causal: bool, dtype: torch.dtype
) -> None:
    assert find_head(build(config(), auto).to(dtype)).is_causal == causal


def test_an_encoder_in_a_causal_class_has_no_cross_entropy_of_the_next_token() -> None:
    model = build(BertGenerationConfig(hidden_size=32, intermediate_size=48, **SIZES))
    found = sae.evaluate(model, tiny_tokens(2, 9), {"encoder.layer.0": make_sae(32, 96, 5, torch.float32)})
    assert found.has_head and not found.causal
    assert {name for name in found["all"].metrics if name.startswith("ce_")} == set()


LLAMA = "LlamaModel has no language-modelling head (it ends in hidden states); load it with AutoModelForCausalLM"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoModel.from_config(tiny_config("llama")), LLAMA),
        (lambda: AutoModel.from_config(qwen2_vl()), "; load it with AutoModelForImageTextToText"),
        (
            lambda: AutoModelForSequenceClassification.from_config(tiny_config("llama")),
            "its logits are (1, 2), not a row for each token",
        ),
        (lambda: AutoModelForTokenClassification.from_config(tiny_config("bert")), "it tells 2 classes apart"),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=VOCAB_SIZE)
            ),
            "tokens alone do not run it: You must specify",
        ),
    ],
)
def test_a_model_without_a_head_is_told_why_and_measured_without(make: Callable[[], nn.Module], message: str) -> None:
    model = make().eval()
    with pytest.raises(lm.NoHeadError) as error:
        find_head(model)
    assert message in str(error.value) and "\n" not in str(error.value)
    block = resolve_hookpoints(model)[0]
    d_in = widths(model, [block])[block]
    found = sae.evaluate(model, tiny_tokens(2, 9), {block: make_sae(d_in, 96, 5, torch.float32)})
    assert not found.has_head and found.why_no_head == str(error.value)
    assert found["all"].metrics["fvu"] == found[block].metrics["fvu"] > 0


def test_a_model_whose_two_halves_were_asked_is_as_before() -> None:
    """BigBird that reads few tokens attends to all of them from then on, in whatever it reads."""
    sizes = {"block_size": 4, "num_random_blocks": 1, "hidden_size": 32, "intermediate_size": 48}
    model = build(BigBirdConfig(**sizes, **SIZES), AutoModelForMaskedLM)
    attentions = [type(layer.attention.self) for layer in model.bert.encoder.layer]
    find_head(model, 8)
    widths(model, resolve_hookpoints(model))
    assert [type(layer.attention.self) for layer in model.bert.encoder.layer] == attentions
    assert model.bert.attention_type == "block_sparse"
    assert model(tiny_tokens(1, 64)).logits.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_asking_leaves_hooks_weights_and_the_random_state_alone(family: str) -> None:
    model = tiny_model(family, causal_lm=True).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state, keys = torch.get_rng_state(), [sorted(vars(module)) for module in model.modules()]
    find_head(model)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert keys == [sorted(vars(module)) for module in model.modules()]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
