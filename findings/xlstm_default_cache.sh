#!/usr/bin/env bash
# xLSTM whose keys are no multiple of 64 wide: a plain forward ends in an error, and one without a cache does not.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import torch
import transformers
from transformers import xLSTMConfig, xLSTMModel

torch.manual_seed(0)
config = xLSTMConfig(hidden_size=64, embedding_dim=64, num_hidden_layers=2, num_blocks=2, num_heads=4, vocab_size=99)
model, tokens = xLSTMModel(config).eval(), torch.randint(4, 60, (1, 16))
print(f"transformers {transformers.__version__}\nexpected: use_cache changes what is kept, and not whether a forward runs")
with torch.no_grad():
    shape = tuple(model(tokens, use_cache=False).last_hidden_state.shape)
    try:
        model(tokens)
        error = None
    except (ValueError, RuntimeError) as raised:
        error = raised
print(f"seen: without a cache {shape}; by default {type(error).__name__}: {str(error)[:120]}")
keys = len(model.blocks[0].mlstm_layer.q.weight)
print(f"the layer's keys are {keys} wide, and the state that the config makes for them {config.qk_dim}")
raise SystemExit(error is None or keys == config.qk_dim)
PY
