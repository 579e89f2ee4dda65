#!/usr/bin/env bash
# tuned-lens' distances of two PredictionTrajectories: js_divergence is half of Jeffreys' divergence, and above ln 2, where the package's own stats.js_divergence is right; total_variation is one token's largest difference.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 tuned-lens==0.2.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version
from math import log

import numpy as np
import torch
from tuned_lens.plotting import PredictionTrajectory
from tuned_lens.stats import js_divergence

torch.manual_seed(0)
LAYERS, TOKENS, VOCABULARY = 3, 5, 1000
ids = np.arange(TOKENS)
print(f"tuned-lens {version('tuned-lens')}: the distances of two trajectories' predictions, over {VOCABULARY} tokens of a vocabulary")
print(f"expected: the Jensen-Shannon divergence, which is at most ln 2 = {log(2):.3f}, and the total variation, half the sum of |p - q|")
right, js, variation = {}, {}, {}
for name, scale in (("near one another", 0.3), ("far apart", 4.0)):
    logits = torch.randn(LAYERS + 1, TOKENS, VOCABULARY) * 2
    log_p, log_q = logits.log_softmax(-1), (logits + torch.randn(logits.shape) * scale).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    one, other = (PredictionTrajectory(log_probs=x.numpy(), input_ids=ids) for x in (log_p, log_q))
    of_stats = js_divergence(log_p, log_q).mean().item()
    exact = (torch.special.entr((p + q) / 2) - (torch.special.entr(p) + torch.special.entr(q)) / 2).sum(-1).mean().item()
    half = (p - q).abs().sum(-1).mean().item() / 2
    came = [float(np.mean(x.stats)) for x in (one.js_divergence(other), one.total_variation(other))]
    jeffreys, largest = ((p - q) * (log_p - log_q)).sum(-1).mean().item() / 2, (p - q).abs().amax(-1).mean().item()
    right[name] = abs(of_stats - exact) < 1e-5
    js[name] = abs(came[0] - jeffreys) < 1e-4 and came[0] / exact
    variation[name] = abs(came[1] - largest) < 1e-5 and came[1] / half
    print(f"seen: {name}: Jensen-Shannon {exact:.3f}, stats.js_divergence {of_stats:.3f}, the trajectories' js_divergence {came[0]:.3f}")
    print(f"seen: {name}: total variation {half:.3f}, the trajectories' total_variation {came[1]:.3f}")
raise SystemExit(not (all(right.values()) and all(js.values()) and min(js.values()) > 3 and all(variation.values()) and max(variation.values()) < 0.6))
PY
