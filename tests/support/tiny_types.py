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
    r"|linear_num_heads|(encoder|decoder)_num_heads|cross_num_attention_heads|num_heads_per_layer|index_n_heads": 4,
    r"num_key_value_heads|num_kv_heads|n_head_kv|num_query_groups": 2,
    r"head_dim|d_kv|kv_channels|attention_head_dim|global_head_dim|qk_nope_head_dim|qk_rope_head_dim|v_head_dim"
    r"|index_head_dim|cross_head_dim|linear_head_dim": HEAD_DIM,
    r"q_lora_rank|kv_lora_rank|o_lora_rank|.*_lora_rank|lora_r": 16,
    r"rotary_dim": 4,
    r"max_position_embeddings|n_positions|n_ctx|max_sequence_length|max_seq_len|model_max_length": CTX_LEN,
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
        return type(value)(0)
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


def _mrope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)} | more}


OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "attn_layer_indices": [1]},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_n_groups": 1},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16, "layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "reformer": {
        "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "attn_layers": ["local", "local"],
        "attention_head_size": 8, "local_attn_chunk_length": 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1]},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "mobilebert": {"embedding_size": 32, "hidden_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 4},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "longformer": {"attention_window": 4},
    "led": {"attention_window": 4, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    "esm": {"vocab_size": 99, "mask_token_id": 4, "pad_token_id": 1},
    "glm4v_text": _mrope(2, 1, 1),
    "glm4v_moe_text": _mrope(1, 1, 0),
    "glm_image_text": _mrope(2, 1, 1),
    "glm_ocr_text": _mrope(2, 1, 1),
    "qwen2_vl_text": _mrope(2, 1, 1),
    "qwen2_5_vl_text": _mrope(2, 1, 1),
    "qwen2_5_omni_text": _mrope(2, 1, 1),
    "paddleocr_vl_text": _mrope(2, 1, 1),
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 4,
        "vocab_size_per_layer_input": 99,
    },
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "num_heads": 2, "num_blocks": 2, "chunk_size": 16},
    "qwen4_exp_text": {
        "ngram_vocab_size_base": 64, "ple_embed_dim": 32, "hc_lowrank": 8, "split_ngram_parts": 1,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")
        },
    },
    "mistral4": {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "head_dim": 8, "qk_head_dim": 8},
    "longcat_flash": {"qk_head_dim": 16},
    "lilt": {"hidden_size": 48},
    "neomme": {"head_dim": 16},
    "axk1": {"n_group": 1, "topk_group": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48},
    },
    "esmc": {"vocab_size": 99},
    "pegasus_x": {"block_size": 4},
    "chameleon": {"vocabulary_map": {"<image>": 8}},
    "chameleon_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "attn_resolutions": None},
    "emu3": {"vocabulary_map": {"<image>": 8, "<|extra_200|>": 9}},
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1]},
    "janus_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1]},
    "mimi": {"upsample_groups": 32, "num_filters": 4},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "dots3_note_text": {
        "layer_types": ["indexed_attention", "sliding_attention"], "mlp_layer_types": ["dense", "sparse"],
        "head_dim": 16, "per_layer_config": {1: {
            "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "head_dim": 16,
            "qk_nope_head_dim": 8, "v_head_dim": 8, "qk_rope_head_dim": 8}},
    },
    "ernie4_5_vl_moe_text": _mrope(1, 1, 2, moe_intermediate_size=[48, 16], mlp_layer_types=["dense", "sparse"]),
    "florence_vision": {
        "depths": [1, 1], "embed_dim": [8, 32], "num_heads": [2, 4], "num_groups": [2, 4], "patch_size": [7, 3],
        "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True],
    },
    "granite4_vision": {"deepstack_layer_map": [], "spatial_target_layers": [], "downsample_rate": "1/2"},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "muse_spark_audio": {"num_hidden_layers": 4, "hidden_sizes": [8, 8, 8, 32]},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "vibevoice_acoustic_tokenizer": {"num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]},
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]},
    "zaya": {"router_hidden_size": 16},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid"] * 2, "num_hidden_layers": 4, "mamba_dt_rank": 4,
        "attention_hidden_size": 64, "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "hybrid_layer_ids": [1, 3],
        "n_mamba_heads": 8, "mamba_headdim": 8, "attention_hidden_size": 64, "attention_head_dim": 16, "kv_channels": 8,
        "num_query_groups": 4,
    },
    "hunyuan_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "xdrope_section": [1, 1, 1, 1]}},
}  # fmt: skip
"""What a type needs besides: sizes that depend on each other, or that have other names."""
