#!/usr/bin/env bash
# FSMT's decoder with use_cache, which is the default: it has no causal mask, so a token's state depends on later tokens.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import torch
import transformers
from transformers import FSMTConfig, FSMTModel

torch.manual_seed(0)
sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
config = FSMTConfig(langs=["en", "de"], src_vocab_size=64, tgt_vocab_size=64, init_std=0.2, **sizes, **heads)
model, source, target = FSMTModel(config).eval(), torch.randint(4, 60, (1, 9)), torch.randint(4, 60, (1, 12))
print(f"transformers {transformers.__version__}, its default: use_cache {config.use_cache}")
print("expected: the decoder's first tokens have the same states, whatever comes after them")
off = {}
for use_cache in (True, False):
    with torch.no_grad():
        whole, start = (
            model(input_ids=source, decoder_input_ids=ids, use_cache=use_cache).last_hidden_state
            for ids in (target, target[:, :7])
        )
    off[use_cache] = ((whole[:, :7] - start).norm() / start.norm()).item()
    print(f"seen: use_cache {use_cache}: of 7 tokens alone, and of the same 7 before 5 more, the states differ by {off[use_cache]:.1%}")
raise SystemExit(not (config.use_cache and off[True] > 0.01 and off[False] < 1e-5))
PY
