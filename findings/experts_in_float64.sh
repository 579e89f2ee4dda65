#!/usr/bin/env bash
# A mixture of experts in float64 on a CPU: Mixtral, OLMoE, Qwen3-MoE and gpt-oss refuse it as transformers runs their experts by default.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import (
    GptOssConfig, GptOssModel, LlamaConfig, LlamaModel, MixtralConfig, MixtralModel, OlmoeConfig, OlmoeModel, Qwen3MoeConfig, Qwen3MoeModel,
)  # fmt: skip

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
torch.manual_seed(0)
models = {
    "llama": LlamaModel(LlamaConfig(**sizes)),
    "mixtral": MixtralModel(MixtralConfig(**sizes, num_local_experts=2)),
    "olmoe": OlmoeModel(OlmoeConfig(**sizes, num_experts=2, num_experts_per_tok=2, pad_token_id=0)),
    "qwen3_moe": Qwen3MoeModel(Qwen3MoeConfig(**sizes, head_dim=8, moe_intermediate_size=16, num_experts=2, num_experts_per_tok=2)),
    "gpt_oss": GptOssModel(GptOssConfig(**sizes, head_dim=8, num_local_experts=2, num_experts_per_tok=2, pad_token_id=0)),
}
tokens = torch.arange(5, 14)[None]
print(f"torch {torch.__version__}, transformers {transformers.__version__}\nexpected: a model runs in float64, as with experts_implementation='eager'")
seen = {}
with torch.no_grad():
    for name, model in models.items():
        try:
            seen[name] = str(model.eval().double()(tokens).last_hidden_state.dtype)
        except RuntimeError as error:
            seen[name] = "error"
            print(f"seen: {name}: RuntimeError: {error}")
        else:
            print(f"seen: {name}: {seen[name]}")
        if name != "llama":
            model.set_experts_implementation("eager")
            assert model(tokens).last_hidden_state.dtype == torch.float64
raise SystemExit(list(seen.values()) != ["torch.float64", "error", "error", "error", "error"])
PY
