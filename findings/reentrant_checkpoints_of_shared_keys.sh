#!/usr/bin/env bash
# Gemma 3n and 4 with activation checkpointing, use_reentrant=True: layers that take an earlier layer's keys and values pass it no gradient, in silence.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import Gemma3nTextConfig, Gemma4TextConfig, Gemma4TextModel
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextModel

LAYERS = 4
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
sizes |= {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
kinds = {
    "gemma4": lambda shared: Gemma4TextModel(Gemma4TextConfig(**sizes, num_kv_shared_layers=shared, global_head_dim=8)),
    "gemma3n": lambda shared: Gemma3nTextModel(Gemma3nTextConfig(**sizes, num_kv_shared_layers=shared, activation_sparsity_pattern=[0.0] * LAYERS, laurel_rank=4)),
}
tokens = torch.randint(4, 60, (2, 16), generator=torch.Generator().manual_seed(0))
pull = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))


def gradients(model):
    model.zero_grad()
    (model(tokens, use_cache=False).last_hidden_state * pull).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


print(f"transformers {transformers.__version__}, torch {torch.__version__}, {LAYERS} layers\nexpected: checkpointing changes no gradient, as with use_reentrant=False")
seen = {}
for kind, make in kinds.items():
    for shared in (0, 2):
        torch.manual_seed(0)
        model = make(shared).train()
        plain = gradients(model)
        for reentrant in (False, True):
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            found = gradients(model)
            model.activation_checkpointing_disable()
            off = {name: ((found[name] - of).norm() / (of.norm() + 1e-9)).item() for name, of in plain.items()}
            wrong = [name for name, by in off.items() if by > 0.01]
            seen[kind, shared, reentrant] = len(wrong), max(off.values())
            largest = max(off, key=off.get)
            print(f"seen: {kind}, {shared} layers share keys and values, use_reentrant={reentrant}: {len(wrong)} of {len(plain)} gradients are off" + (f", that of {largest} by {off[largest]:.0%}" if wrong else ""))
right = all(found == (0, 0.0) for (_, shared, reentrant), found in seen.items() if not (shared and reentrant))
lost = all(seen[kind, 2, True][0] > 10 and seen[kind, 2, True][1] > 0.2 for kind in kinds)
raise SystemExit(not (right and lost))
PY
