#!/usr/bin/env bash
# torcheval's Perplexity takes the logarithm of a softmax in the logits' dtype: in float16 one token of probability under 3e-8 makes it infinite; cross_entropy of that dtype is right.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 torcheval==0.0.7
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from torcheval.metrics import Perplexity

torch.set_num_threads(1)
TOKENS, VOCABULARY = 512, 1000
print(f"torcheval {version('torcheval')}, torch {torch.__version__}; {TOKENS} tokens, a vocabulary of {VOCABULARY}")
print("expected: exp of the mean cross entropy of the same logits, within what their dtype rounds; torch's cross_entropy has it in that dtype")
torch.manual_seed(0)
target = torch.randint(VOCABULARY, (1, TOKENS))
usual = torch.randn(1, TOKENS, VOCABULARY)
usual.scatter_(2, target[..., None], 8.0)
rare = usual.clone()
rare[0, 0, target[0, 0]] = -12.0
seen = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for name, logits in (("all tokens likely", usual), ("one token with a logit of -12", rare)):
        logits = logits.to(dtype)
        exact = torch.nn.functional.cross_entropy(logits[0].double(), target[0]).exp().item()
        own = torch.nn.functional.cross_entropy(logits[0], target[0]).exp().item()
        found = Perplexity().update(logits, target).compute().item()
        seen[dtype, name] = found / exact, own / exact
        print(f"seen: {dtype}, {name}: {found:.3f}, exactly {exact:.3f}, with cross_entropy of that dtype {own:.3f}")
half, rare_token = torch.float16, "one token with a logit of -12"
own = all(abs(own - 1) < 0.02 for _, own in seen.values())
rest = all(abs(found - 1) < 0.02 for key, (found, _) in seen.items() if key != (half, rare_token))
raise SystemExit(not (own and rest and seen[half, rare_token][0] == float("inf")))
PY
