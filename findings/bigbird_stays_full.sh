#!/usr/bin/env bash
# BigBird after one short input: long inputs get full attention from then on, and other numbers than before.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import torch
import transformers
from transformers import BigBirdConfig, BigBirdModel

torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
config = BigBirdConfig(
    vocab_size=64, block_size=4, num_random_blocks=1, max_position_embeddings=256, sep_token_id=2, **sizes
)
model, tokens = BigBirdModel(config).eval(), torch.randint(4, 60, (1, 128))
with torch.no_grad():
    before, again = (model(tokens).last_hidden_state for _ in range(2))
    model(tokens[:, :8])
    after = model(tokens).last_hidden_state
difference = (after - before).abs().max().item()
print(f"transformers {transformers.__version__}\nexpected: a model in evaluation mode gives one input one output")
print(f"seen: differs by {difference:.4f} after a forward of 8 tokens; attention_type {model.attention_type}")
raise SystemExit(not torch.equal(before, again) or difference == 0)
PY
