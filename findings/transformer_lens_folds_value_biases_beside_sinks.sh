#!/usr/bin/env bash
# TransformerLens' compatibility mode changes what gpt-oss computes: value biases are folded as if a head's pattern summed to 1, beside its sink.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 transformer-lens==4.3.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import GptOssConfig, GptOssForCausalLM

tokens = torch.tensor([[1, 5, 9, 22, 13, 40, 7, 33, 28, 19, 50, 11]])
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}


def change(sink, **how):
    """The logits' relative change by compatibility mode, as probabilities see it."""
    torch.manual_seed(0)
    model = GptOssForCausalLM(GptOssConfig(**sizes, **heads)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
            if name.endswith("sinks"):
                parameter.fill_(sink)
        bridge = build_bridge_from_module(model, "GptOssForCausalLM", hf_config=model.config).eval()
        before = bridge(tokens).log_softmax(-1)
        bridge.enable_compatibility_mode(disable_warnings=True, **how)
        after = bridge(tokens).log_softmax(-1)
    return ((after - before).norm() / (before - before.mean(-1, keepdim=True)).norm()).item()


print(f"transformer-lens {version('transformer-lens')}, a gpt-oss with random weights\nexpected: enable_compatibility_mode leaves the log-probabilities as they are")
default, unfolded, sinkless = change(0.0), change(0.0, fold_value_biases=False), change(-1e4)
print(f"seen: they change by {default:.1%}; with fold_value_biases=False by {unfolded:.4%}; and without sinks by {sinkless:.4%}")
raise SystemExit(not (default > 0.01 and unfolded < 1e-4 and sinkless < 1e-4))
PY
