#!/usr/bin/env bash
# e2e_sae's top-1 accuracy holds what is predicted to come next against the token that is there: a model that knows every next token has 0, one that repeats its input 1; the loss beside it is of next tokens.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==1.26.4 transformers==4.56.2 transformer-lens==2.17.0 pyarrow==21.0.0 pydantic==2.14.4 python-dotenv==1.2.1
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps e2e_sae==2.1.1; fi
"$python" -W ignore - 2>/dev/null <<'PY'
import sys
from importlib.metadata import version
from types import ModuleType

import torch

# The wheel has not got the training scripts, of which the loader takes a class that opens a folder; this one stands in for it.
for name in ("e2e_sae.scripts.train_tlens", "e2e_sae.scripts.train_tlens.run_train_tlens"):
    sys.modules[name] = ModuleType(name)
sys.modules[name].HookedTransformerPreConfig = object
from e2e_sae.metrics import calc_output_metrics  # noqa: E402

VOCAB, TOKENS = 100, 64
tokens = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))[None, :TOKENS]


def sure_of(ids):
    return 50 * torch.nn.functional.one_hot(ids, VOCAB).float()


print(f"e2e_sae {version('e2e_sae')}: calc_output_metrics of {TOKENS} tokens, all of them different; the same logits before and after the SAE")
print("expected: who is sure of the right next token has the loss 0 and the accuracy 1, who is sure of the token that is there has a large loss and 0")
seen = {}
for name, logits in {"sure of the next token": sure_of(tokens.roll(-1, 1)), "sure of the token that is there": sure_of(tokens)}.items():
    metrics = calc_output_metrics(tokens, logits, logits, train=False)
    seen[name] = metrics["performance/eval/orig_model_ce_loss"], metrics["performance/eval/orig_model_top1_accuracy"]
    print(f"seen: {name}: orig_model_ce_loss {abs(seen[name][0]):.2f}, orig_model_top1_accuracy {seen[name][1]:.2f}")
following, repeated = seen.values()
raise SystemExit(not (abs(following[0]) < 1e-3 and following[1] == 0 and repeated[0] > 10 and repeated[1] == 1))
PY
