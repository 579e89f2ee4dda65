#!/usr/bin/env bash
# tuned-lens' js_divergence, by its docstring finite for disjoint supports, is NaN as soon as one token has probability 0 in either distribution, as one whose logit is masked with -inf; SciPy's is finite.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 tuned-lens==0.2.0 scipy==1.17.1
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version
from math import isnan

import torch
from scipy.spatial.distance import jensenshannon
from tuned_lens.stats import js_divergence

torch.manual_seed(0)
p, q = torch.randn(2, 10, dtype=torch.float64)
masked = p.index_fill(0, torch.tensor([9]), -torch.inf)
left, right = p.index_fill(0, torch.arange(5), -torch.inf), q.index_fill(0, torch.arange(5, 10), -torch.inf)
print(f"tuned-lens {version('tuned-lens')}: js_divergence of logits over ten tokens\nexpected: what SciPy has, ln 2 at most")
seen = {}
for name, pair in {"no token masked": (p, q), "one masked in the first": (masked, q), "the same one masked in both": (masked, masked), "disjoint supports": (left, right)}.items():
    seen[name] = js_divergence(*pair).item(), jensenshannon(*(x.softmax(-1).numpy() for x in pair)) ** 2
    print("seen: {}: {:.4f}, SciPy {:.4f}".format(name, *seen[name]))
ours, theirs = seen.pop("no token masked")
raise SystemExit(not (abs(ours - theirs) < 1e-9 and all(isnan(came) and 0 <= exact < 0.6932 for came, exact in seen.values())))
PY
