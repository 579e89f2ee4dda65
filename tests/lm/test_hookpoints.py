"""Hookpoints: where the blocks are in any architecture, and what names, globs and sugar stand for."""

import pytest
import torch
from tiny_models import FAMILIES, tiny_config, tiny_model
from tiny_types import tiny_config as any_config
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    BloomConfig,
    DistilBertConfig,
    FalconConfig,
    ModernBertConfig,
    OPTConfig,
    PreTrainedConfig,
    T5Config,
)

from sae.lm import block_list, canonical, harvest, locate, resolve_hookpoints

BLOCKS = {"gpt_neox": "layers", "gpt2": "h", "llama": "layers", "gemma3": "layers", "bert": "encoder.layer"}
OTHERS = {
    "decoder.layers": OPTConfig(
        hidden_size=8, num_hidden_layers=5, num_attention_heads=2, vocab_size=9, ffn_dim=8, word_embed_proj_dim=8
    ),
    "encoder.block": T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=5, num_heads=2, vocab_size=9),
    "h": BloomConfig(hidden_size=8, n_layer=5, n_head=2, vocab_size=9),
    "transformer.layer": DistilBertConfig(dim=8, hidden_dim=8, n_layers=5, n_heads=2, vocab_size=9),
}


def skeleton(config: PreTrainedConfig) -> nn.Module:
    with torch.device("meta"):
        return AutoModel.from_config(config)


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return skeleton(tiny_config("llama"))


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    return skeleton(tiny_config("bert"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_is_the_default_with_and_without_head_and_weights(family: str) -> None:
    expected = [f"{BLOCKS[family]}.{layer}" for layer in range(3)]
    assert resolve_hookpoints(skeleton(tiny_config(family))) == expected
    assert resolve_hookpoints(tiny_model(family, causal_lm=True)) == expected


@pytest.mark.parametrize("path", OTHERS)
def test_blocks_are_found_under_the_names_that_other_architectures_give_them(path: str) -> None:
    assert block_list(skeleton(OTHERS[path])) == (path, 5)


def test_models_with_renamed_depth_still_have_blocks() -> None:
    falcon = FalconConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=9)
    modern = ModernBertConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=9, pad_token_id=0
    )
    assert block_list(skeleton(falcon)) == ("h", 2)
    assert block_list(skeleton(modern)) == ("layers", 2)


def test_blocks_of_a_multimodal_model_are_those_that_read_text() -> None:
    model = skeleton(tiny_config("gemma3_multimodal"))
    vision = next(m for path, m in model.named_modules() if path.startswith("vision") and isinstance(m, nn.ModuleList))
    assert len(vision) == 3
    assert block_list(model) == ("language_model.layers", 3)


def test_of_lists_as_long_as_the_model_is_deep_the_one_with_the_parameters_holds_the_blocks() -> None:
    model = nn.Module()
    model.gates = nn.ModuleList(nn.Linear(2, 1) for _ in range(4))
    model.blocks = nn.ModuleList(nn.ModuleList(nn.Linear(8, 8) for _ in range(4)) for _ in range(4))
    model.pair = nn.ModuleList(nn.Linear(99, 99) for _ in range(2))
    assert block_list(model) == ("blocks", 4)


def test_a_model_without_a_list_of_blocks_is_told_to_use_hookpoints() -> None:
    albert = AlbertConfig(
        hidden_size=8, embedding_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, vocab_size=9
    )
    model = skeleton(albert)
    model.encoder.albert_layer_groups = nn.ModuleDict()  # and so it does not run either
    with pytest.raises(ValueError, match=r"AlbertModel must have a list of its 3 .* --hookpoints .*encoder"):
        resolve_hookpoints(model)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"layers": [2, 0, 2]}, ["layers.0", "layers.2"]),
        ({"layer_stride": 2}, ["layers.0", "layers.2"]),
        ({"layer_stride": 9}, ["layers.0"]),
        ({"hookpoints": ["layers.*"]}, ["layers.0", "layers.1", "layers.2"]),
        ({"hookpoints": ["layers.[1-9]"]}, ["layers.1", "layers.2"]),
        ({"hookpoints": ["layers.[!1]"]}, ["layers.0", "layers.2"]),
        ({"hookpoints": ["layers.?.mlp"]}, ["layers.0.mlp", "layers.1.mlp", "layers.2.mlp"]),
        ({"hookpoints": ["layers.1.*_proj"]}, None),
        ({"hookpoints": ["layers.1.self_attn.[kq]_proj"]}, ["layers.1.self_attn.q_proj", "layers.1.self_attn.k_proj"]),
        ({"hookpoints": ["norm", "layers.1", "embed_*", "layers.1"]}, ["embed_tokens", "layers.1", "norm"]),
        ({"hookpoints": ["layers.0.output"]}, ["layers.0"]),
        ({"hookpoints": ["layers.0", "layers.0.output", "layers.0.input"]}, ["layers.0.input", "layers.0"]),
        ({"hookpoints": ["layers.*.mlp.input"]}, [f"layers.{i}.mlp.input" for i in range(3)]),
        ({"hookpoints": ["model.layers.2", "model.layers.1.mlp.input"]}, ["layers.1.mlp.input", "layers.2"]),
        ({"hookpoints": ["*"]}, ["embed_tokens", "norm", "rotary_emb"]),
        ({"hookpoints": ["layers"]}, None),
        ({"hookpoints": ["*.input"]}, ["embed_tokens.input", "norm.input", "rotary_emb.input"]),
        ({"hookpoints": [""]}, None),
        ({"hookpoints": ["input"]}, None),
    ],
)
def test_a_choice_stands_for_these_hookpoints(llama: nn.Module, choice: dict, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="matches nothing"):
            resolve_hookpoints(llama, **choice)
    else:
        assert resolve_hookpoints(llama, **choice) == expected


def test_a_module_that_is_really_named_output_wins_over_the_suffix(bert: nn.Module) -> None:
    assert resolve_hookpoints(bert, hookpoints=["encoder.layer.1.output"]) == ["encoder.layer.1.output"]
    assert locate(bert, "encoder.layer.1.output") == (bert.get_submodule("encoder.layer.1.output"), "output", 0)
    assert resolve_hookpoints(bert, hookpoints=["encoder.layer.*.output.output"])[0] == "encoder.layer.0.output"
    assert resolve_hookpoints(bert, hookpoints=["bert.encoder.layer.1.intermediate.output"]) == [
        "encoder.layer.1.intermediate"
    ]


def test_the_paths_of_the_model_with_head_are_understood_in_every_family() -> None:
    for family, prefix in (("gpt_neox", "gpt_neox"), ("gpt2", "transformer"), ("gemma3", "model"), ("bert", "bert")):
        model = skeleton(tiny_config(family))
        assert resolve_hookpoints(model, hookpoints=[f"{prefix}.{BLOCKS[family]}.*"]) == resolve_hookpoints(model)


def test_a_resolved_hookpoint_is_a_fixed_point_and_can_be_located(llama: nn.Module) -> None:
    names = resolve_hookpoints(llama, hookpoints=["layers.*", "layers.*.*", "layers.*.*.input", "embed_tokens"])
    assert resolve_hookpoints(llama, hookpoints=names) == names
    assert len(names) == len(set(names)) == 3 + 2 * 12 + 1
    for name in names:
        module, side, _ = locate(llama, name)
        assert module is llama.get_submodule(name.removesuffix(".input"))
        assert side == ("input" if name.endswith(".input") else "output")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layers": [3]}, r"--layers must be between 0 and 2 \(the model has 3 layers\), got 3"),
        ({"layers": [0, -1]}, r"--layers must be between 0 and 2 .* got -1"),
        ({"layer_stride": 0}, r"--layer_stride must be at least 1, got 0"),
        ({"layer_stride": -2}, r"--layer_stride must be at least 1, got -2"),
        ({"layers": [1], "layer_stride": 2}, r"--layers and --layer_stride must not be given together"),
        ({"layers": [1], "hookpoints": ["norm"]}, r"--layers and --hookpoints must not"),
        ({"layer_stride": 2, "hookpoints": ["norm"]}, r"--layer_stride and --hookpoints must not"),
        ({"hookpoints": ["layers.7"]}, r"'layers.7' matches nothing; near names: layers.*3 blocks are layers.0 to"),
        ({"hookpoints": ["layers.*.mpl"]}, r"near names: layers\.\*\.mlp"),
        ({"hookpoints": ["norm", "embed_token"]}, r"'embed_token' matches nothing; near names: embed_tokens"),
        ({"hookpoints": ["zzz"]}, r"'zzz' matches nothing; the model starts with embed_tokens, layers.0"),
    ],
)
def test_a_choice_that_names_nothing_is_refused(llama: nn.Module, choice: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        resolve_hookpoints(llama, **choice)
    assert "\n" not in str(refused.value)


def test_locating_an_unknown_place_says_what_comes_near(llama: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'layers.0.mlpp' matches nothing; near names: layers.0.mlp"):
        locate(llama, "layers.0.mlpp")


@pytest.mark.parametrize("model_type", ["xlm", "flaubert"])
def test_a_block_that_is_spread_over_lists_is_the_part_that_puts_out_the_residual_stream(model_type: str) -> None:
    torch.manual_seed(0)
    model, tokens = AutoModel.from_config(any_config(model_type)).eval(), torch.randint(4, 90, (2, 7))
    names = resolve_hookpoints(model)
    assert names == ["layer_norm2.0", "layer_norm2.1"]
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states
    found = harvest(model, tokens, names)
    assert all(torch.equal(found[name], state) for name, state in zip(names, states[1:], strict=True))


def test_blocks_without_a_module_for_their_residual_stream_or_in_several_stacks_are_refused() -> None:
    pre_norm = any_config("flaubert")
    pre_norm.pre_norm = True
    with pytest.raises(ValueError, match=r"pre_norm has no module that puts out .* --hookpoints .*attentions"):
        resolve_hookpoints(skeleton(pre_norm))
    with pytest.raises(ValueError, match=r"BltModel has several stacks of blocks, .* --hookpoints .local_encoder"):
        resolve_hookpoints(skeleton(any_config("blt")))


def test_blocks_of_two_sublayers_each_are_found_though_the_config_counts_sublayers() -> None:
    config = any_config("longcat_flash")
    assert config.num_hidden_layers == 4
    assert block_list(skeleton(config)) == ("layers", 2)


@pytest.mark.parametrize("model_type", ["qwen3_5", "llama4", "gemma3"])
def test_a_block_has_one_name_whichever_class_holds_the_weights(model_type: str) -> None:
    config = any_config(model_type)
    with torch.device("meta"):
        whole, causal = AutoModel.from_config(config), AutoModelForCausalLM.from_config(config)
        text = AutoModel.from_config(config.get_text_config())
    names = ["layers.0", "layers.1"]
    for model in (whole, causal, text):
        assert resolve_hookpoints(model) == names
        assert resolve_hookpoints(model, hookpoints=["layers.*.input"]) == ["layers.0.input", "layers.1.input"]
        # as the classes that hold more call them, in this one too
        for wrapper in ("language_model", "model", "model.language_model", "language_model.model"):
            assert resolve_hookpoints(model, hookpoints=[f"{wrapper}.layers.*"]) == names
            assert locate(model, f"{wrapper}.layers.1.input")[0] is locate(model, "layers.1")[0]
            assert canonical(model, f"{wrapper}.layers.1.input") == "layers.1.input"
            assert canonical(model, f"{wrapper}.layers.1.output") == "layers.1"


def test_modules_beside_the_text_model_keep_their_full_paths() -> None:
    model = skeleton(tiny_config("gemma3_multimodal"))
    vision = "vision_tower.encoder.layers.0"
    assert resolve_hookpoints(model, hookpoints=[vision]) == [vision]
    assert resolve_hookpoints(model) == [f"layers.{layer}" for layer in range(3)]
    with pytest.raises(ValueError, match="'vision.layers.0' matches nothing"):
        locate(model, "vision.layers.0")


def test_the_first_versions_layer_is_a_hidden_state_which_is_what_the_block_receives(llama: nn.Module) -> None:
    for name in ("layer_2.pt", "layer_2"):
        assert locate(llama, name) == locate(llama, "layers.2.input")
        assert canonical(llama, name) == "layers.2.input"
    with pytest.raises(ValueError, match="'layers.3.input' matches nothing"):
        locate(llama, "layer_3.pt")
