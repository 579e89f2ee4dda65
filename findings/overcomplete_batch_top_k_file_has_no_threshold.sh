#!/usr/bin/env bash
# overcomplete's BatchTopKSAE: the threshold that inference needs is not in its state dict, and top_k is of a batch, not a token.
set -euo pipefail
source "$(dirname "$0")/environment_overcomplete.sh"
"$python" - <<'PY'
from importlib.metadata import version

import torch
from overcomplete.sae import BatchTopKSAE

torch.manual_seed(0)
WIDTH, LATENTS, K = 16, 64, 4
print(f"overcomplete {version('overcomplete')}\nexpected: a saved model opens and infers; top_k {K} keeps {K} codes of a token, as in TopKSAE")
sae = BatchTopKSAE(WIDTH, LATENTS, top_k=K).train()
kept = {}
for tokens in (50, 500):
    codes = sae(torch.randn(tokens, WIDTH))[1]
    kept[tokens] = int((codes > 0).sum())
    print(f"seen: of a batch of {tokens} tokens, {kept[tokens]} codes stay")
names = list(sae.state_dict())
opened = BatchTopKSAE(WIDTH, LATENTS, top_k=K)
opened.load_state_dict(sae.state_dict())
sae.eval()(torch.randn(50, WIDTH))
try:
    opened.eval()(torch.randn(50, WIDTH))
    error = None
except AssertionError as raised:
    error = raised
print(f"seen: the threshold is {sae.running_threshold:.3f}; the state dict has {names}")
print(f"seen: the model that was loaded from it, at inference: {type(error).__name__}: {error}")
raise SystemExit(not (kept == {50: K, 500: K} and error is not None and not any("threshold" in name for name in names)))
PY
