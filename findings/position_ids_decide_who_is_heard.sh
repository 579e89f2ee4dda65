#!/usr/bin/env bash
# position_ids that do not go up by one, without a cache and a mask: tokens hear only those since the last such step; with a cache, all.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaModel

torch.manual_seed(0)
TOKENS = 12
model = LlamaModel(LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, initializer_range=0.3)).eval()
tokens = torch.arange(5, 5 + TOKENS)[None]
other = torch.cat([tokens[:, :1] + 20, tokens[:, 1:]], 1)  # the first token is another one
once = torch.arange(TOKENS)[None]
positions = {"0, 1, 2, ...": once, "0, 1, ..., 5, 0, 1, ..., 5": once % 6, "0, 2, 4, ...": 2 * once, "all 0": 0 * once, "0, 0, 1, 2, ...": (once - 1).clamp(min=0)}
ways = {"use_cache=True, the default": {}, "use_cache=False": {"use_cache": False}, "use_cache=False and a mask of ones": {"use_cache": False, "attention_mask": torch.ones_like(tokens)}}
print(f"transformers {transformers.__version__}\nexpected: a causal model whose last token hears of the first, whichever positions they have, and use_cache changes nothing")
seen = {}
with torch.no_grad():
    for name, ids in positions.items():
        for way, options in ways.items():
            states, others = (model(t, position_ids=ids, **options).last_hidden_state for t in (tokens, other))
            heard = (states != others).any(-1)[0].sum().item() - 1
            seen.setdefault(name, []).append(heard)
        print(f"seen: positions {name}: the first token is heard by " + ", ".join(f"{n} ({way})" for n, way in zip(seen[name], ways, strict=True)))
every = TOKENS - 1
expected = [[every, without, every] for without in (every, 5, 0, 0, 0)]
raise SystemExit(list(seen.values()) != expected)
PY
