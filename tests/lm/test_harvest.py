"""Harvest: the forward that stops early gives the very numbers of the whole forward, and leaves no trace."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload
from hooked_models import INSIDE, InPlace, num_hooks
from tiny_models import FAMILIES, VOCAB_SIZE, tiny_model, tiny_tokens
from tiny_types import tiny_config as any_config
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, T5Config, WhisperConfig, WhisperModel

from sae.lm import base_model, block_list, graft, harvest, locate, resolve_hookpoints, widths
from sae.lm.layout import as_tokens, found_instead


# Besides the blocks: a wider layer inside, attention (which returns a tuple), inputs (by position and by keyword).
def run_whole(model: nn.Module, tokens: Tensor, hookpoints: Sequence[str]) -> dict[str, Tensor]:
    """The oracle: one forward to its end, copying as it goes."""
    seen: dict[str, Tensor] = {}
    handles = []

    def watch(name: str) -> None:
        def take(value: Any) -> None:
            seen.setdefault(name, (value if isinstance(value, Tensor) else value[0]).clone())

        module, side, _ = locate(model, name)
        if side == "input":
            hook = lambda m, args, kw: take(args[0] if args else kw["hidden_states"])  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(lambda m, args, output: take(output)))

    for name in hookpoints:
        watch(name)
    with torch.no_grad():
        model(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return seen


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_early_equals_the_hidden_states_of_the_whole_model(family: str) -> None:
    model, tokens = tiny_model(family), tiny_tokens()
    hookpoints = resolve_hookpoints(model)
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states
    found = harvest(model, tokens, hookpoints)
    if family == "bert":
        expected = states[1:]
    else:  # transformers puts the last block's output through the final norm; the next test covers that block
        expected = states[1:-1]
    for hookpoint, state in zip(hookpoints, expected, strict=False):
        assert torch.equal(found[hookpoint], state), hookpoint
        assert not torch.equal(state, states[0])


@pytest.mark.parametrize("causal_lm", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_early_equals_hooks_in_the_whole_model(family: str, causal_lm: bool) -> None:
    model, tokens = tiny_model(family, causal_lm=causal_lm), tiny_tokens(3, 11)
    hookpoints = resolve_hookpoints(model, hookpoints=[*INSIDE[family], *resolve_hookpoints(model)])
    expected = run_whole(model, tokens, hookpoints)
    assert_equal(harvest(model, tokens, hookpoints), expected)
    for hookpoint in hookpoints:  # each alone, so that each is the one to stop at
        assert_equal(harvest(model, tokens, [hookpoint]), {hookpoint: expected[hookpoint]})


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_behind_the_last_hookpoint_runs(family: str) -> None:
    model = tiny_model(family)
    path, count = block_list(model)
    ran = []
    for layer in range(count):
        model.get_submodule(f"{path}.{layer}").register_forward_hook(lambda m, a, o, layer=layer: ran.append(layer))
    harvest(model, tiny_tokens(), [f"{path}.0", f"{path}.1.input"])
    assert ran == [0]
    harvest(model, tiny_tokens(), [f"{path}.1"])
    assert ran == [0, 0, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_as_before_also_when_its_forward_raises(family: str) -> None:
    model = tiny_model(family, causal_lm=True).train()
    base_model(model).get_submodule(resolve_hookpoints(model)[1]).eval()
    before = num_hooks(model), [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    config, grad = model.config.to_dict(), torch.is_grad_enabled()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    harvest(model, tiny_tokens(), resolve_hookpoints(model))
    with pytest.raises(IndexError):
        harvest(model, torch.full((1, 4), 10**6), resolve_hookpoints(model))
    assert before == (
        num_hooks(model),
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )
    assert (config, grad) == (model.config.to_dict(), torch.is_grad_enabled())
    assert_equal(model.state_dict(), weights)


def test_harvested_values_carry_no_graph_and_may_be_trained_on() -> None:
    model = tiny_model("llama")
    value = harvest(model, tiny_tokens(), ["layers.1"])["layers.1"]
    assert not value.requires_grad and not value.is_inference()
    weight = torch.ones(32, requires_grad=True)
    (value * weight).sum().backward()
    assert torch.equal(weight.grad, value.sum((0, 1)))


def test_dropout_is_off_in_a_model_left_in_training_mode() -> None:
    model = tiny_model("gpt2")
    expected = harvest(model, tiny_tokens(), ["h.2"])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    assert_equal(harvest(model.train(), tiny_tokens(), ["h.2"]), expected)


def test_values_are_those_of_the_moment_though_the_model_writes_into_them_later() -> None:
    model, tokens = InPlace(), torch.arange(6).reshape(2, 3)
    embedded = model.embed.weight[tokens].detach()
    first = (embedded + model.blocks[0](embedded)).detach()
    found = harvest(model, tokens, ["embed", "blocks.1.input", "blocks.1"])
    assert torch.equal(found["embed"], embedded)
    assert torch.equal(found["blocks.1.input"], first)
    assert torch.equal(found["blocks.1"], model.blocks[1](first))


def test_a_module_that_runs_twice_counts_the_first_time() -> None:
    model, tokens = InPlace(), torch.arange(6).reshape(2, 3)
    expected = model.blocks[0](model.embed.weight[tokens]).detach()
    assert torch.equal(harvest(model, tokens, ["blocks.0", "blocks.1"])["blocks.0"], expected)


@pytest.mark.parametrize(
    ("hookpoint", "message"),
    [
        ("unused", r"the forward of InPlace runs, and unused was not reached"),
        ("blocks", r"blocks was not reached"),
        ("flat", r"hookpoint flat must carry one vector per token, .* \(2, 3\), got float32 \(6, 4\)"),
        ("count", r"hookpoint count must carry .* got int64 \(2, 3\)"),
        ("block.0", r"'block.0' matches nothing; near names: blocks.0"),
    ],
)
def test_a_hookpoint_without_a_vector_per_token_is_refused_by_name(hookpoint: str, message: str) -> None:
    model = InPlace()
    with pytest.raises(ValueError, match=message):
        harvest(model, torch.arange(6).reshape(2, 3), ["embed", hookpoint])
    assert num_hooks(model) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (5, 1)])
def test_any_batch_and_length_harvests(shape: tuple[int, int]) -> None:
    model, tokens = tiny_model("gpt_neox"), tiny_tokens(*shape)
    assert_equal(harvest(model, tokens, ["layers.1"]), run_whole(model, tokens, ["layers.1"]))


def test_an_encoder_harvests_though_its_decoder_got_nothing_to_read() -> None:
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=VOCAB_SIZE, dropout_rate=0.0)
    model, tokens = AutoModel.from_config(config).eval(), tiny_tokens()
    hookpoints = resolve_hookpoints(model)
    with torch.no_grad():
        states = model.encoder(tokens, output_hidden_states=True).hidden_states
    found = harvest(model, tokens, hookpoints)
    assert hookpoints == ["encoder.block.0", "encoder.block.1"]
    assert torch.equal(found["encoder.block.0"], states[1])


def test_widths_are_those_of_each_hookpoint() -> None:
    model = tiny_model("llama", causal_lm=True)
    hookpoints = ["embed_tokens", "layers.0.mlp.up_proj", "layers.0.self_attn.k_proj", "layers.2", "layers.2.input"]
    assert list(widths(model, hookpoints).values()) == [32, 48, 16, 32, 32]
    assert widths(tiny_model("gemma3"), ["layers.1"]) == {"layers.1": 40}


def test_widths_refuse_what_has_no_vector_per_token() -> None:
    with pytest.raises(ValueError, match=r"hookpoint rotary_emb must carry one vector per token.*\(1, 3, 8\)"):
        widths(tiny_model("llama"), ["rotary_emb"])


def test_the_text_side_of_a_multimodal_model_harvests() -> None:
    model, tokens = tiny_model("gemma3_multimodal"), tiny_tokens()
    hookpoints = resolve_hookpoints(model)
    assert_equal(harvest(model, tokens, hookpoints), run_whole(model, tokens, hookpoints))
    with pytest.raises(ValueError, match=r"vision_tower.encoder.layers.0 was not reached"):
        harvest(model, tokens, ["vision_tower.encoder.layers.0"])


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_bfloat16_to_the_bit(family: str) -> None:
    model, tokens = tiny_model(family).to(torch.bfloat16), tiny_tokens()
    hookpoints = resolve_hookpoints(model)
    found = harvest(model, tokens, hookpoints)
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert_equal(found, run_whole(model, tokens, hookpoints))


def test_a_model_whose_layers_accelerate_brings_when_they_are_needed_is_harvested_alike(tmp_path: Path) -> None:
    tokens, hookpoints = tiny_tokens(), ["layers.0", "layers.1.mlp"]
    expected = harvest(tiny_model("llama"), tokens, hookpoints)
    laid_out = disk_offload(tiny_model("llama"), str(tmp_path), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in laid_out.parameters())
    for _ in range(2):  # the first was stopped in the middle
        found = harvest(laid_out, tokens, hookpoints)
        assert all(torch.equal(found[name], expected[name]) for name in hookpoints)


@pytest.mark.parametrize(("model_type", "streams", "first"), [("deepseek_v4", 4, False), ("gemma3n_text", 4, True)])
def test_several_streams_of_a_token_are_one_vector_and_are_grafted_in_their_own_shape(
    model_type: str, streams: int, first: bool
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(any_config(model_type)).eval()
    tokens, name = torch.randint(4, 90, (2, 6)), "layers.1"
    seen: list[Tensor] = []
    handle = (
        base_model(model)
        .layers[1]
        .register_forward_hook(lambda m, a, output: seen.append(output if isinstance(output, Tensor) else output[0]))
    )
    with torch.no_grad():
        clean = model(tokens).logits
    handle.remove()
    assert seen[0].shape == ((streams, 2, 6, 32) if first else (2, 6, streams, 32))
    expected = torch.cat(list(seen[0] if first else seen[0].unbind(2)), -1)
    assert torch.equal(harvest(model, tokens, [name])[name], expected)
    assert widths(model, [name]) == {name: streams * 32}
    with torch.no_grad():
        with graft(model, {name: lambda x: x}):
            assert torch.equal(model(tokens).logits, clean)
        with graft(model, {name: lambda x: x.cumsum(-1)}):
            assert not torch.equal(model(tokens).logits, clean)


def test_a_forward_that_fails_where_weights_are_in_bf16_names_the_type_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("expected scalar type Float but found BFloat16")

    for dtype, advice in ((torch.bfloat16, "try --dtype float32"), (torch.float32, "images, sound or more")):
        model = tiny_model("gpt_neox").base_model.to(dtype)
        first = next(model.parameters())
        first.data = first.data.float()  # as XLNet is loaded
        monkeypatch.setattr(model, "forward", fails)
        with pytest.raises(ValueError, match=advice):
            widths(model, ["layers.1"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_sound_is_told_from_one_of_text(dtype: torch.dtype) -> None:
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    config = WhisperConfig(
        **sizes, vocab_size=99, encoder_attention_heads=4, decoder_attention_heads=4, num_mel_bins=8,
        max_source_positions=20, max_target_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperModel(config).to(dtype)
    with pytest.raises(
        ValueError, match="WhisperModel must run on token ids alone, but it reads input_features; a model"
    ):
        widths(model, ["encoder.layers.0"])


def test_several_vectors_for_each_token_are_not_called_padding_alone() -> None:
    told = found_instead(torch.zeros(2, 9, 32), (2, 3))
    assert "9 positions for 3 tokens; 3 vectors for each token cannot be told apart: name another module; if" in told
    assert "8 positions for 3 tokens; if the model pads" in found_instead(torch.zeros(2, 8, 32), (2, 3))


@pytest.mark.parametrize(("model_type", "name"), [("xlnet", "layer.1"), ("fsmt", "encoder.layers.1")])
@pytest.mark.parametrize("shape", [(2, 6), (6, 2), (4, 4), (1, 1), (1, 5)])
def test_positions_before_the_batch_are_read_and_grafted_as_batch_before_positions(
    model_type: str, name: str, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(any_config(model_type)).eval()
    tokens, one, seen = torch.randint(4, 90, shape), shape == (1, 1), []
    found = harvest(model, tokens, [name])[name]
    with torch.no_grad():
        alone = torch.cat([harvest(model, row.unsqueeze(0), [name])[name] for row in tokens])
    assert found.shape == (*shape, 32) and torch.allclose(found, alone, atol=1e-5)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[0, -1] = True
    with torch.no_grad():
        clean = model(tokens)[0]
        with graft(model, {name: lambda x: seen.append(x) or x.clone()}):
            assert torch.equal(model(tokens)[0], clean)
        with graft(model, {name: lambda x: x + x.cumsum(-1)}, mask=mask):
            changed = (model(tokens)[0] != clean).any(-1)
    assert torch.allclose(seen[0], found, atol=1e-5)
    assert changed[0].any() and (one or not changed[1:].any())


def test_a_value_whose_token_axis_is_not_certain_is_refused_with_its_shape() -> None:
    value = torch.randn(4, 2, 3, 5)
    assert torch.equal(as_tokens(value, (2, 3)), torch.cat(list(value), -1))
    assert torch.equal(as_tokens(value, (4, 2)), value.reshape(4, 2, 15))
    assert as_tokens(value, (3, 2)) is None and as_tokens(torch.randn(2, 2, 2, 5), (2, 2)) is None


@pytest.mark.parametrize("model_type", ["longformer", "led"])
def test_a_model_that_pads_to_its_window_is_read_at_multiples_of_it(model_type: str) -> None:
    config = any_config(model_type)
    model = AutoModel.from_config(config).eval()
    hookpoints, tokens = resolve_hookpoints(model), torch.randint(4, 90, (2, 8))
    assert set(widths(model, hookpoints, 8).values()) == {32}
    assert_equal(harvest(model, tokens, hookpoints), run_whole(model, tokens, hookpoints))
    with pytest.raises(ValueError, match=r"4 positions for 3 tokens; if the model pads, a --ctx_len of 4 fits it"):
        widths(model, hookpoints, 7)


def test_a_model_that_brings_tokens_together_is_refused_by_the_block_that_does() -> None:
    model = AutoModel.from_config(any_config("canine")).eval()
    with pytest.raises(ValueError, match=r"encoder.layer.0 must carry .*, 4 vectors for 16 tokens, which it brings"):
        widths(model, resolve_hookpoints(model), 16)
    assert widths(model, ["initial_char_encoder.layer.0"], 16) == {"initial_char_encoder.layer.0": 32}


def test_a_model_that_needs_more_than_tokens_is_refused_in_one_line() -> None:
    model = AutoModel.from_config(any_config("clip")).eval()
    with pytest.raises(
        ValueError, match=r"CLIPModel must run on token ids alone, .*; a model that needs images"
    ) as told:
        widths(model, resolve_hookpoints(model))
    assert "\n" not in str(told.value)
