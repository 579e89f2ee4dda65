#!/usr/bin/env bash
# SAELens' ActivationsStore: reset_input_dataset() resets nothing, and shuffle_input_dataset() nothing once a batch was read.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sae-lens==6.54.12
"$python" -W ignore - <<'PY'
import sae_lens
import torch
from datasets import Dataset
from sae_lens import ActivationsStore
from transformer_lens import HookedTransformer, HookedTransformerConfig

ROWS, CTX_LEN, BATCH = 40, 8, 4
sizes = {"n_layers": 1, "d_model": 8, "n_ctx": CTX_LEN, "d_head": 4, "n_heads": 2, "d_vocab": ROWS, "act_fn": "relu"}
model = HookedTransformer(HookedTransformerConfig(**sizes, d_mlp=16, device="cpu"))
data = Dataset.from_dict({"input_ids": [[i] * CTX_LEN for i in range(ROWS)]})


def store():
    where = {"hook_name": "blocks.0.hook_resid_post", "hook_head_index": None, "d_in": 8, "context_size": CTX_LEN}
    amounts = {"n_batches_in_buffer": 2, "total_training_tokens": 64, "store_batch_size_prompts": BATCH, "train_batch_size_tokens": 8}
    how = {"streaming": False, "prepend_bos": False, "normalize_activations": "none", "dtype": "float32"}
    return ActivationsStore(model, data, **where, **amounts, **how, device=torch.device("cpu"))


def rows(of):
    return of.get_batch_tokens()[:, 0].tolist()


print(f"sae-lens {sae_lens.__version__}\nexpected: after reset_input_dataset the first batch again; after shuffle_input_dataset another order")
used, fresh = store(), store()
first = rows(used)
used.reset_input_dataset()
reset = rows(used)
used.shuffle_input_dataset(seed=0)
shuffled = rows(used)
fresh.shuffle_input_dataset(seed=0)
before = rows(fresh)
print(f"seen: the first batch {first}; after a reset {reset}; after a shuffle {shuffled}")
print(f"seen: shuffled before anything was read, the first batch is {before}")
expected = [list(range(start, start + BATCH)) for start in (0, BATCH, 2 * BATCH)]
raise SystemExit(not ([first, reset, shuffled] == expected and before != expected[0]))
PY
