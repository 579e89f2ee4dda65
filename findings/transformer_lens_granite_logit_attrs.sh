#!/usr/bin/env bash
# TransformerLens' logit_attrs of Granite: logits_scaling is left out, so attributions are as many times too large.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 transformer-lens==4.3.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

SCALING, RIGHT, WRONG = 8.0, 7, 9
tokens = torch.tensor([[1, 5, 9, 22, 13, 40, 7, 33, 28, 19, 50, 11]])
sizes = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 64, "intermediate_size": 48, "num_attention_heads": 4}
kinds = {
    LlamaForCausalLM: LlamaConfig(**sizes),
    CohereForCausalLM: CohereConfig(**sizes, logit_scale=1 / SCALING),
    GraniteForCausalLM: GraniteConfig(**sizes, logits_scaling=SCALING, residual_multiplier=0.22, embedding_multiplier=12.0),
}
print(f"transformer-lens {version('transformer-lens')}, in compatibility mode, as attribution needs it")
print("expected: attributions of embedding, attention layers and MLPs add up to the difference of the two logits")
seen = []
for kind, config in kinds.items():
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
        bridge = build_bridge_from_module(model, kind.__name__, hf_config=config).eval()
        bridge.enable_compatibility_mode(disable_warnings=True)
        logits, cache = bridge.run_with_cache(tokens)
        sums = cache.logit_attrs(cache.decompose_resid(), tokens=RIGHT, incorrect_tokens=WRONG).sum(0)
    difference = logits[..., RIGHT] - logits[..., WRONG]
    seen.append((sums @ difference.T / (difference @ difference.T)).item())
    print(f"seen: {kind.__name__}: they add up to {seen[-1]:.3f} times the difference")
raise SystemExit(max(abs(a - b) for a, b in zip(seen, [1, 1, SCALING])) > 1e-3)
PY
