#!/usr/bin/env bash
# overcomplete's BatchTopKSAE: the threshold that inference needs is not in its state dict, and top_k is of a batch, not a token.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 overcomplete==0.3.0
"$python" - <<'PY'
import sys
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType

import torch

# The package imports torchvision for its models of images, which does not load beside a torch for CPUs alone.
package = ModuleType("overcomplete")
package.__path__ = list(find_spec("overcomplete").submodule_search_locations)
sys.modules["overcomplete"] = package
from overcomplete.sae import BatchTopKSAE  # noqa: E402

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
