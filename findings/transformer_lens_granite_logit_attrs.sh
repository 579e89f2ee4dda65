#!/usr/bin/env bash
# TransformerLens' logit_attrs of Granite: logits_scaling is left out, so attributions are as many times too large.
set -euo pipefail
source "$(dirname "$0")/environment_transformer_lens.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
import torch
from bridges import LIBRARY, TOKENS, bridged, noisy
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

SCALING, RIGHT, WRONG = 8.0, 7, 9
sizes = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 64, "intermediate_size": 48, "num_attention_heads": 4}
kinds = {
    LlamaForCausalLM: LlamaConfig(**sizes),
    CohereForCausalLM: CohereConfig(**sizes, logit_scale=1 / SCALING),
    GraniteForCausalLM: GraniteConfig(**sizes, logits_scaling=SCALING, residual_multiplier=0.22, embedding_multiplier=12.0),
}
print(f"{LIBRARY}, in compatibility mode, as attribution needs it")
print("expected: attributions of embedding, attention layers and MLPs add up to the difference of the two logits")
seen = []
for kind, config in kinds.items():
    with torch.no_grad():
        bridge = bridged(noisy(kind, config))
        bridge.enable_compatibility_mode(disable_warnings=True)
        logits, cache = bridge.run_with_cache(TOKENS)
        sums = cache.logit_attrs(cache.decompose_resid(), tokens=RIGHT, incorrect_tokens=WRONG).sum(0)
    difference = logits[..., RIGHT] - logits[..., WRONG]
    seen.append((sums @ difference.T / (difference @ difference.T)).item())
    print(f"seen: {kind.__name__}: they add up to {seen[-1]:.3f} times the difference")
raise SystemExit(max(abs(a - b) for a, b in zip(seen, [1, 1, SCALING])) > 1e-3)
PY
