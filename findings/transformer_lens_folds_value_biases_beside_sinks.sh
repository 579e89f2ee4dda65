#!/usr/bin/env bash
# TransformerLens' compatibility mode changes what gpt-oss computes: value biases are folded as if a head's pattern summed to 1, beside its sink.
set -euo pipefail
source "$(dirname "$0")/environment_transformer_lens.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
import torch
from bridges import LIBRARY, TOKENS, bridged, noisy
from transformers import GptOssConfig, GptOssForCausalLM

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}


def change(sink, **how):
    """The logits' relative change by compatibility mode, as probabilities see it."""
    model = noisy(GptOssForCausalLM, GptOssConfig(**sizes, **heads), 0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.fill_(sink)
        bridge = bridged(model)
        before = bridge(TOKENS).log_softmax(-1)
        bridge.enable_compatibility_mode(disable_warnings=True, **how)
        after = bridge(TOKENS).log_softmax(-1)
    return ((after - before).norm() / (before - before.mean(-1, keepdim=True)).norm()).item()


print(f"{LIBRARY}, a gpt-oss with random weights\nexpected: enable_compatibility_mode leaves the log-probabilities as they are")
default, unfolded, sinkless = change(0.0), change(0.0, fold_value_biases=False), change(-1e4)
print(f"seen: they change by {default:.1%}; with fold_value_biases=False by {unfolded:.4%}; and without sinks by {sinkless:.4%}")
raise SystemExit(not (default > 0.01 and unfolded < 1e-4 and sinkless < 1e-4))
PY
