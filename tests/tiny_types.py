"""A configuration of a few thousand weights for any model type of transformers, derived from its default."""

import re
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCAB_SIZE = 99
CTX_LEN = 64
WIDTH = 32
HEAD_DIM = 8

SIZES: dict[str, int] = {
    r"(.*_)?vocab_size(_.*)?|num_buckets|encoder_hash_byte_group_vocab": VOCAB_SIZE,
    r"num_hidden_layers(_.*)?|n_layers?|num_layers|.*(encoder|decoder)_layers|num_(encoder|decoder)_(hidden_)?layers"
    r"|depth|num_blocks|num_hidden_layers_.*|n_head_layers|encoder_num_hidden_layers|vision_layers": 2,
    r"hidden_size|n_embd|d_model|dim|embed_dim|embedding_size|word_embed_proj_dim|emb_dim|text_embed_dim"
    r"|attention_hidden_size|projection_dim|lru_width|mm_hidden_size|out_hidden_size|output_dim|decoder_hidden_size"
    r"|text_hidden_size|audio_hidden_size|condition_dim|vision_hidden_size|pooler_hidden_size|projection_dimensions"
    r"|.*_hidden_size|embedding_dim": WIDTH,
    r"(.*_)?intermediate_size(_.*)?|(.*_)?ffn_dim|ffn_hidden_size|d_ff|n_inner|hidden_dim|inner_dim|mlp_dim"
    r"|feed_forward_size|feedforward_dim|dim_ff|dff|expert_ffn_size|expert_ffn_hidden_size|moe_ffn_dim"
    r"|projector_(hidden_dim|input_dim|output_dim)": 48,
    r"num_attention_heads|n_heads?|num_heads|(encoder|decoder)_attention_heads|attention_heads|n_attention_heads"
    r"|(encoder|decoder)_num_heads|cross_num_attention_heads|num_heads_per_layer|index_n_heads": 4,
    r"num_key_value_heads|num_kv_heads|n_head_kv|num_query_groups": 2,
    r"head_dim|d_kv|kv_channels|attention_head_dim|global_head_dim|qk_nope_head_dim|qk_rope_head_dim|v_head_dim"
    r"|index_head_dim|cross_head_dim": HEAD_DIM,
    r"q_lora_rank|kv_lora_rank|o_lora_rank|.*_lora_rank|lora_r": 16,
    r"rotary_dim": 4,
    r"max_position_embeddings|n_positions|n_ctx|max_sequence_length|max_seq_len": CTX_LEN,
    r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts": 4,
    r"num_experts_per_tok|moe_topk|num_experts_per_token|moe_k": 2,
    r"image_size|img_size|input_image_size": 28,
    r"patch_size": 14,
}
"""What an option of that name becomes, if it is a whole number, and if it was larger."""

OFF = r".*(dropout|drop|pdrop|layerdrop|jitter_noise|noise_scale)(_prob|_p|_rate|_ratio)?"


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The default configuration of a type, made small: 2 layers of width 32, no dropout."""
    cls = CONFIG_MAPPING[model_type]
    return cls(**tiny_options(cls))


def tiny_options(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """What to give that class, its sub-configurations included."""
    default = cls()
    options: dict[str, Any] = {}
    for name, value in vars(default).items():
        if isinstance(value, PreTrainedConfig):
            options[name] = tiny_options(type(value))
            if type(value).model_type and "model_type" not in options[name]:
                options[name]["model_type"] = type(value).model_type
        elif isinstance(value, int | float) and not isinstance(value, bool):
            options[name] = tiny_value(name, value)
        elif name == "layer_types" and isinstance(value, list) and value:
            options[name] = two_kinds(value)
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            options[name] = tiny_rope(value)
    plain = vars(default)
    if plain.get("num_key_value_heads", 0) == plain.get("num_attention_heads"):
        options["num_key_value_heads"] = options["num_attention_heads"]
    if plain.get("head_dim", 0) is None:
        options["head_dim"] = HEAD_DIM
    return options | OVERRIDES.get(cls.model_type, {})


def tiny_value(name: str, value: float) -> float:
    """A smaller number for the option of that name."""
    if re.fullmatch(OFF, name):
        return 0.0
    if isinstance(value, float):
        return value
    if re.fullmatch(r".*_token_id|.*_token_index|.*_index", name) and value >= VOCAB_SIZE:
        return 3
    return next((min(value, small) for pattern, small in SIZES.items() if re.fullmatch(pattern, name)), value)


def two_kinds(layers: list[str]) -> list[str]:
    """Two layers, of two kinds if there are; the rarer one (attention between recurrences) last."""
    kinds = sorted(dict.fromkeys(layers), key=layers.count, reverse=True)
    return [kinds[0], kinds[-1]]


def tiny_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """The parameters of rotary positions, per kind of layer or not, with sections that fit the head."""
    if any(isinstance(value, dict) for value in rope.values()):
        return {kind: tiny_rope(value) if isinstance(value, dict) else value for kind, value in rope.items()}
    changes: dict[str, Any] = {}
    if rope.get("mrope_section"):
        half = int(HEAD_DIM * rope.get("partial_rotary_factor", 1.0)) // 2
        changes["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    return rope | changes


OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "reformer": {
        "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "attn_layers": ["local", "local"],
        "attention_head_size": 8, "local_attn_chunk_length": 4, "is_decoder": True,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "funnel": {"block_sizes": [1, 1]},
    "xlnet": {"d_head": 8},
    "mpt": {"attn_pdrop": 0},
    "xmod": {"default_language": "en_XX"},
    "mobilebert": {"embedding_size": 32, "hidden_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "nemotron": {"head_dim": 8},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "zamba": {"layers_block_type": ["mamba", "hybrid"], "layer_types": None},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "longcat_flash": {"qk_head_dim": None},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "hrm_text": {},
    "lilt": {"hidden_size": 36, "num_attention_heads": 4},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "diffusion_gemma": {},
}  # fmt: skip
"""What a type needs besides: sizes that depend on each other, or that have other names."""
