#!/usr/bin/env bash
# Hybrid models cut to their first layers, which have no attention: a plain forward ends in an error, as their cache has no length then.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - 2>/dev/null <<'PY'
import tempfile

import torch
import transformers
from transformers import (
    AutoModel, FalconH1Config, FalconH1Model, GraniteMoeHybridConfig, GraniteMoeHybridModel, JambaConfig, JambaModel, NemotronHConfig,
    NemotronHModel, OlmoHybridConfig, OlmoHybridModel, Qwen3NextConfig, Qwen3NextModel, RecurrentGemmaConfig, RecurrentGemmaModel,
)  # fmt: skip

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
ssm = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
experts = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 2}
periods = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
two, mamba2 = ["linear_attention", "full_attention"], {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8}
torch.manual_seed(0)
models = {
    "qwen3_next": Qwen3NextModel(Qwen3NextConfig(**sizes, **linear, head_dim=8, layer_types=two, moe_intermediate_size=16, num_experts=2, num_experts_per_tok=1)),
    "olmo_hybrid": OlmoHybridModel(OlmoHybridConfig(**sizes, **linear, layer_types=two, pad_token_id=0)),
    "granitemoehybrid": GraniteMoeHybridModel(GraniteMoeHybridConfig(**sizes, **ssm, **experts, layer_types=["mamba", "attention"])),
    "jamba": JambaModel(JambaConfig(**sizes, **periods, num_experts=2, num_experts_per_tok=2, use_mamba_kernels=False)),
    "recurrent_gemma": RecurrentGemmaModel(RecurrentGemmaConfig(**sizes, head_dim=8, lru_width=32, block_types=["recurrent", "attention"])),
    "falcon_h1": FalconH1Model(FalconH1Config(**sizes, **ssm, mamba_d_ssm=64)),
    "nemotron_h": NemotronHModel(NemotronHConfig(**sizes, **mamba2, layers_block_type=["mamba", "attention"], pad_token_id=0)),
}
tokens = torch.arange(5, 14)[None]
print(f"transformers {transformers.__version__}\nexpected: a model that is loaded with its first layer alone gives that layer's output, as with use_cache=False")
seen = {}
with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    for name, model in models.items():
        model.save_pretrained(f"{folder}/{name}")
        one = AutoModel.from_pretrained(f"{folder}/{name}", num_hidden_layers=1).eval()
        model.eval()(tokens)
        one(tokens, use_cache=False)
        try:
            one(tokens)
            seen[name] = "runs"
        except ValueError as error:
            seen[name] = "error"
            text = str(error)[:62]
        print(f"seen: {name}: " + ("a plain forward runs" if seen[name] == "runs" else f"a plain forward: ValueError: {text}"))
raise SystemExit([name for name, what in seen.items() if what == "error"] != list(models)[:5])
PY
