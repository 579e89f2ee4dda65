#!/usr/bin/env bash
# TransformerLens' start_at_layer on BLOOM, Mamba and Mamba 2: every block runs, and what was to enter the later one is taken as the embedding.
set -euo pipefail
source "$(dirname "$0")/environment_transformer_lens.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
from copy import deepcopy

import torch
from bridges import LIBRARY, TOKENS, bridged, noisy
from transformers import (
    BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM,
)  # fmt: skip

BLOCKS, START = 3, 2
sizes = {"hidden_size": 32, "vocab_size": 64}
kinds = {
    GPT2LMHeadModel: GPT2Config(n_embd=32, n_layer=BLOCKS, n_head=4, vocab_size=64),
    BloomForCausalLM: BloomConfig(**sizes, n_layer=BLOCKS, n_head=4),
    MambaForCausalLM: MambaConfig(**sizes, num_hidden_layers=BLOCKS),
    Mamba2ForCausalLM: Mamba2Config(**sizes, num_hidden_layers=BLOCKS, num_heads=8, head_dim=8, n_groups=2),
}


def off(logits, right):
    return ((logits - right).norm() / right.norm()).item()


print(f"{LIBRARY}\nexpected: from what entered block {START} of {BLOCKS}, start_at_layer={START} gives the logits that were")
wrong, embedded = {}, {}
for kind, config in kinds.items():
    model = noisy(kind, config)
    with torch.no_grad():
        bridge = bridged(deepcopy(model))
        logits, cache = bridge.run_with_cache(TOKENS)
        entered = cache[f"blocks.{START}.hook_in"]
        later = bridge(entered, start_at_layer=START)
        wrong[kind], embedded[kind] = off(later, logits), off(later, model(inputs_embeds=entered).logits)
    print(f"seen: {kind.__name__}: off by {wrong[kind]:.1%}; from the logits of the same as inputs_embeds by {embedded[kind]:.1%}")
right = wrong.pop(GPT2LMHeadModel) < 1e-5 < embedded.pop(GPT2LMHeadModel)
raise SystemExit(not (right and min(wrong.values()) > 0.05 and max(embedded.values()) < 1e-5))
PY
