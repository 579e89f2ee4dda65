#!/usr/bin/env bash
# tuned-lens' LogitStats takes n, how many logits its statistics are of, and drops it: what was counted before weighs nothing once it is given more, so after a restart they are of the last batch alone.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 tuned-lens==0.2.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from tuned_lens.stats import LogitStats

torch.manual_seed(0)
first, second = torch.randn(9000, 5) + torch.tensor([4.0, 0, 0, 0, 0]), torch.randn(1000, 5)
exact = torch.cat([first, second]).softmax(-1).mean(0)
print(f"tuned-lens {version('tuned-lens')}: marginal probabilities of 9,000 tokens' logits and 1,000 others'")
print(f"expected: {exact.tolist()[0]:.3f} for the first class, whether or not the statistics were restored in between")
whole = LogitStats()
whole.update(first)
whole.update(second)
before = LogitStats()
before.update(first)
restored = LogitStats(n=before.n, marginal_probs=before.marginal_probs, sufficient_stats=before.sufficient_stats)
kept = restored.n
restored.update(second)
once, again, last = whole.marginal_probs[0].item(), restored.marginal_probs[0].item(), second.softmax(-1).mean(0)[0].item()
print(f"seen: without a restart {once:.3f}; restored with n={before.n.item()}, which has n={kept} then, {again:.3f}; the last 1,000 tokens alone {last:.3f}")
alpha = [x.mle().concentration[0].item() for x in (whole, restored)]
print(f"seen: the Dirichlet distribution's concentration of that class: {alpha[0]:.2f}, and restored {alpha[1]:.2f}")
raise SystemExit(not (abs(once - exact[0]) < 1e-5 and kept is None and abs(again - last) < 1e-5 and abs(last - exact[0]) > 0.3))
PY
