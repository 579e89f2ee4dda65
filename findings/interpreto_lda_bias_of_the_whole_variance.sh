#!/usr/bin/env bash
# interpreto's lda_shared_var_bias, "Bayes-optimal" with a pooled variance: its variance is that of all scores, distance of the classes included, so a rare concept's threshold is too high.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 interpreto==0.5.2
"$python" -W ignore - <<'PY'
from importlib.metadata import version
from math import log

import torch
from interpreto.concepts.probes.bias_calibrators import lda_shared_var_bias

TOKENS, RARE = 100_000, 0.1
torch.manual_seed(0)
print(f"interpreto {version('interpreto')}: {TOKENS} scores, of which {RARE:.0%} have the concept; both groups normal, with variance 1")
print("expected: the threshold where both are as likely, which no other beats: half the distance, plus the prior's log odds over the distance")
seen = {}
for apart in (3, 6, 9):
    has = (torch.rand(TOKENS, 1) < RARE).float()
    scores = torch.randn(TOKENS, 1) + apart * has
    optimal, threshold = apart / 2 + log((1 - RARE) / RARE) / apart, -float(lda_shared_var_bias(scores, has))
    wrong, least = (float(((scores > t) != (has > 0)).float().mean()) for t in (threshold, optimal))
    missed, right = (float((scores[has > 0] <= t).float().mean()) for t in (threshold, optimal))
    seen[apart] = threshold - optimal, wrong, least, missed, right
    print(f"seen: {apart} apart: {threshold:.2f}, where {optimal:.2f} is optimal; of the concept's tokens {missed:.1%} are missed ({right:.1%}), of all {wrong:.2%} are wrong ({least:.2%})")
raise SystemExit(not (all(by[0] > 0.4 and by[1] > 1.2 * by[2] for by in seen.values()) and seen[3][3] > 0.4 and seen[3][4] < 0.3))
PY
