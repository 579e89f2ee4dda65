#!/usr/bin/env bash
# Zamba with its shared block used once (one hybrid layer) cannot be made.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import transformers
from transformers import ZambaConfig, ZambaForCausalLM

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4}
sizes |= {"attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 2, "mamba_dt_rank": 4}


def make(layers: list[str]) -> str:
    try:
        ZambaForCausalLM(ZambaConfig(vocab_size=64, num_hidden_layers=len(layers), layers_block_type=layers, **sizes))
    except ValueError as error:
        return f"ValueError: {error}"[:90]
    return "made"


once, twice = make(["mamba", "hybrid"]), make(["mamba", "hybrid"] * 2)
print(f"transformers {transformers.__version__}\nexpected: made\nseen: {once} (with two hybrid layers: {twice})")
raise SystemExit(not (once.startswith("ValueError") and twice == "made"))
PY
