#!/usr/bin/env bash
# steering-vectors finds layers by name: 'self_attn' of Qwen3-Next is a norm, 'decoder_block' of T5 the encoder's, of PaliGemma the image tower's.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==4.57.6 steering-vectors==0.12.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from steering_vectors import record_activations
from transformers import (
    PaliGemmaConfig, PaliGemmaForConditionalGeneration, Qwen3NextConfig, Qwen3NextForCausalLM, T5Config, T5ForConditionalGeneration,
)  # fmt: skip

heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
text = {"hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 64, "intermediate_size": 48, **heads}
image = {"hidden_size": 32, "num_hidden_layers": 6, "intermediate_size": 48, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
delta = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
hybrid = Qwen3NextForCausalLM(Qwen3NextConfig(**text, **delta, **experts))
translator = T5ForConditionalGeneration(T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, vocab_size=64))
# As in the model itself, 27 to 18 layers, the image tower has more of them.
images = {"model_type": "siglip_vision_model", **image, "projection_dim": 32}
viewer = PaliGemmaForConditionalGeneration(
    PaliGemmaConfig(vision_config=images, text_config={"model_type": "gemma", **text}, projection_dim=32, hidden_size=32)
)
tokens = torch.arange(5, 14)[None]
asked = [
    (hybrid, "self_attn", "model.layers.3.self_attn", {}),
    (translator, "decoder_block", "decoder.block.{0,1,2}", {"decoder_input_ids": tokens}),
    (viewer, "decoder_block", "model.language_model.layers.{0,1,2,3}", {}),
]
print(f"steering-vectors {version('steering-vectors')}; no layer_config, which is then inferred")
seen = []
for model, layer_type, expected, more in asked:
    with torch.no_grad(), record_activations(model.eval(), layer_type=layer_type) as recorded:
        hooked = [name for name, module in model.named_modules() if module._forward_hooks]
        model(input_ids=tokens, **more)
    seen.append((hooked[0], len(hooked), len(recorded)))
    print(f"{type(model).__name__}, layer_type '{layer_type}'\n  expected: {expected}")
    print(f"  seen: {hooked[0]} and {len(hooked) - 1} more like it; a text is recorded at {len(recorded)} of them")
norm, encoder, tower = "model.layers.0.post_attention_layernorm", "encoder.block.0", "model.vision_tower.vision_model.encoder.layers.0"
raise SystemExit(seen != [(norm, 4, 4), (encoder, 3, 3), (tower, 6, 0)])
PY
