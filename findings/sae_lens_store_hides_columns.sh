#!/usr/bin/env bash
# SAELens' ActivationsStore sets the format of the data set that it was given: the caller's own columns are gone from it.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sae-lens==6.54.12
"$python" -W ignore - 2>/dev/null <<'PY'
import sae_lens
import torch
from datasets import Dataset
from sae_lens import ActivationsStore
from transformer_lens import HookedTransformer, HookedTransformerConfig

ROWS, CTX_LEN = 12, 8
sizes = {"n_layers": 1, "d_model": 8, "n_ctx": CTX_LEN, "d_head": 4, "n_heads": 2, "d_vocab": ROWS, "act_fn": "relu"}
model = HookedTransformer(HookedTransformerConfig(**sizes, d_mlp=16, device="cpu"))
where = {"hook_name": "blocks.0.hook_resid_post", "hook_head_index": None, "d_in": 8, "context_size": CTX_LEN}
amounts = {"n_batches_in_buffer": 2, "total_training_tokens": 64, "store_batch_size_prompts": 4, "train_batch_size_tokens": 8}
how = {"streaming": False, "prepend_bos": False, "normalize_activations": "none", "dtype": "float32"}
data = Dataset.from_dict({"input_ids": [[row] * CTX_LEN for row in range(ROWS)], "source": [f"page {row}" for row in range(ROWS)]})


def row():
    return {name: type(value).__name__ for name, value in data[0].items()}


print(f"sae-lens {sae_lens.__version__}\nexpected: a data set that activations are read from is as before")
before = row()
ActivationsStore(model, data, **where, **amounts, **how, device=torch.device("cpu"))
after = row()
print(f"seen: a row of it before: {before}, and after a store was made: {after}")
raise SystemExit(not (before == {"input_ids": "list", "source": "str"} and after == {"input_ids": "Tensor"}))
PY
