#!/usr/bin/env bash
# Dynamic RoPE scaling: a text's activations depend on the longest text that the model saw before, until one comes that is short.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaModel

torch.manual_seed(0)
TRAINED = 16
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "initializer_range": 0.3}
text, longer, short = (torch.randint(0, 64, (1, length)) for length in (20, 60, 8))
print(f"transformers {transformers.__version__}, max_position_embeddings {TRAINED}, a text of {text.shape[1]} tokens")
print("expected: a model in eval mode gives the same text the same activations, whatever it ran before")
seen = {}
for kind in ("dynamic", "yarn", "linear"):
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = TRAINED
    model = LlamaModel(LlamaConfig(**sizes, max_position_embeddings=4 * TRAINED if kind == "yarn" else TRAINED, rope_parameters=rope)).eval()
    with torch.no_grad():
        first = model(text).last_hidden_state
        changes = []
        for before in (longer, short):
            model(before)
            changes.append(((model(text).last_hidden_state - first).norm() / first.norm()).item())
    seen[kind] = changes
    print(f"seen: {kind}: after a text of {longer.shape[1]} tokens it is changed by {changes[0]:.1%}, after one of {short.shape[1]} tokens by {changes[1]:.1%}")
raise SystemExit(not (seen["dynamic"][0] > 0.05 and seen["dynamic"][1] == 0 and seen["yarn"] == seen["linear"] == [0, 0]))
PY
