#!/usr/bin/env bash
# HypotheSAEs' train_sae(batch_topk=True): beside a checkpoint of a TopK SAE of that size it trains nothing and returns the TopK one.
set -euo pipefail
source "$(dirname "$0")/environment_hypothesaes.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version
from os import listdir

import numpy as np
import torch
from hypothesaes.quickstart import train_sae

M, K, WIDTH = 32, 4, 16
torch.manual_seed(0)
embeddings = np.random.default_rng(0).normal(size=(2000, WIDTH)).astype(np.float32)
print(f"hypothesaes {version('hypothesaes')}: train_sae of M={M}, K={K} into one checkpoint_dir, first TopK, then batch_topk=True")
options = {"checkpoint_dir": "checkpoints", "n_epochs": 3, "show_progress": False}
first = train_sae(embeddings, M, K, **options)
second = train_sae(embeddings, M, K, batch_topk=True, **options)
alone = train_sae(embeddings, M, K, batch_topk=True, **(options | {"checkpoint_dir": "others"}))
lengths = {"TopK": first, "then batch_topk=True": second, "batch_topk=True in a folder of its own": alone}
varies = {}
for name, sae in lengths.items():
    fired = (sae.get_activations(embeddings, show_progress=False) > 0).sum(1)
    varies[name] = fired.min() != fired.max()
    expected = "BatchTopK, as many latents as a text needs" if "batch" in name else "TopK"
    print(f"{name}\n  expected: {expected}")
    print(f"  seen: use_batch_topk={sae.use_batch_topk}, {fired.min()} to {fired.max()} latents of a text")
same = torch.equal(first.encoder.weight, second.encoder.weight)
print(f"seen: weights of the first and of the second are equal: {same}; checkpoints: {listdir('checkpoints')}")
raise SystemExit(not (same and not second.use_batch_topk and alone.use_batch_topk and varies["batch_topk=True in a folder of its own"]))
PY
