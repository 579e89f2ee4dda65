#!/usr/bin/env bash
# TransformerLens' get_full_resid_decomposition where a norm follows attention (Gemma 2 and 3, OLMo 2 and 3, GLM-4): heads are taken before it.
set -euo pipefail
source "$(dirname "$0")/environment_transformer_lens.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
import torch
from bridges import LIBRARY, TOKENS, bridged, noisy
from transformers import (
    Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, Glm4Config, Glm4ForCausalLM, LlamaConfig,
    LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM, Olmo3Config, Olmo3ForCausalLM,
)  # fmt: skip

sizes = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 64, "intermediate_size": 48, "pad_token_id": 0}
heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
kinds = {
    LlamaForCausalLM: LlamaConfig, Gemma2ForCausalLM: Gemma2Config, Gemma3ForCausalLM: Gemma3TextConfig,
    Olmo2ForCausalLM: Olmo2Config, Olmo3ForCausalLM: Olmo3Config, Glm4ForCausalLM: Glm4Config,
}  # fmt: skip
print(f"{LIBRARY}\nexpected: heads, MLPs, embedding and biases add up to the residual stream; MLPs, attention layers and embedding do")
seen = []
for kind, config in kinds.items():
    with torch.no_grad():
        bridge = bridged(noisy(kind, config(**sizes, **heads)))
        bridge.enable_compatibility_mode(disable_warnings=True)
        cache = bridge.run_with_cache(TOKENS)[1]
        residual = cache["blocks.2.hook_resid_post"]
        off = [((parts.sum(0) - residual).norm() / residual.norm()).item() for parts in (
            cache.get_full_resid_decomposition(expand_neurons=False), cache.decompose_resid(),
        )]  # fmt: skip
    seen.append(off)
    print(f"seen: {kind.__name__}: by heads the sum is off by {off[0]:.1%}; by layers, as decompose_resid does it, by {off[1]:.1%}")
raise SystemExit(not (seen[0][0] < 1e-4 and all(by_heads > 0.1 for by_heads, _ in seen[1:]) and all(by_layers < 1e-4 for _, by_layers in seen)))
PY
