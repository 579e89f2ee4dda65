#!/usr/bin/env bash
# MRA's attention on a CPU returns zeros, without a word: no token hears of another.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import torch
import transformers
from transformers import MraConfig, MraModel

torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
model = MraModel(MraConfig(vocab_size=64, max_position_embeddings=130, **sizes)).eval()
seen = []
model.encoder.layer[0].attention.self.register_forward_hook(lambda module, args, output: seen.append(output[0]))
with torch.no_grad():
    model(torch.randint(4, 60, (1, 128)))
largest = seen[0].abs().max().item()
print(f"transformers {transformers.__version__}\nexpected: attention, or an error")
print(f"seen: its largest value is {largest}")
raise SystemExit(largest != 0)
PY
