#!/usr/bin/env bash
# ALBERT with several layers in a group: hidden_states has a state for each inner layer, and attentions has not.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import torch
import transformers
from transformers import AlbertConfig, AlbertModel

print(f"transformers {transformers.__version__}\nexpected: 1 + num_hidden_layers hidden states, whatever is in a layer")
found = {}
for inner in (1, 2, 3):
    sizes = {"hidden_size": 32, "embedding_size": 16, "intermediate_size": 48, "num_attention_heads": 4}
    config = AlbertConfig(**sizes, num_hidden_layers=4, inner_group_num=inner, vocab_size=99)
    model = AlbertModel(config).eval()
    with torch.no_grad():
        states = model(torch.arange(3, 10)[None], output_hidden_states=True).hidden_states
    found[inner] = len(states) - 1
    print(f"seen: num_hidden_layers 4, inner_group_num {inner}: {found[inner]} states after the embedding's")
raise SystemExit(found != {1: 4, 2: 8, 3: 12})
PY
