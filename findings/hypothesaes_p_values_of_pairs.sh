#!/usr/bin/env bash
# HypotheSAEs on pairs of texts: the effect turns the label of a pair where the second text has the concept, the p-value's t-test negates it: a hypothesis that decides has 0.1, noise 1e-20.
set -euo pipefail
source "$(dirname "$0")/environment_hypothesaes.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import numpy as np
from hypothesaes.evaluation import score_hypotheses
from scipy.stats import ttest_ind

PAIRS = 600
random = np.random.default_rng(0)
# 1: the first text alone has the concept, -1: the second alone, 0: both or neither. The label is 1 where the first text won.
concept = random.integers(-1, 2, PAIRS)
tossed = random.integers(0, 2, PAIRS)
strong = np.where(concept == 0, tossed, np.where(random.random(PAIRS) < 0.95, concept == 1, concept != 1)).astype(float)
noise = random.integers(-1, 2, PAIRS)
_, table = score_hypotheses({"decides": concept, "noise": noise}, strong)
table = table.set_index("hypothesis")
print(f"hypothesaes {version('hypothesaes')}: {PAIRS} pairs; the text that has the concept wins 95% of them")
seen = {}
for name, given in (("decides", concept), ("noise", noise)):
    turned = np.concatenate([strong[given == 1], 1 - strong[given == -1]])
    expected = ttest_ind(turned, strong[given == 0])[1]
    row = table.loc[name]
    seen[name] = expected, row.separation_pval, row.separation_score
    print(f"'{name}', separation_score {row.separation_score:.2f}\n  expected: p-value of that difference {expected:.1e}")
    print(f"  seen: separation_pval {row.separation_pval:.1e}")
(expected, came, effect), (_, of_noise, _) = seen["decides"], seen["noise"]
raise SystemExit(not (effect > 0.35 and expected < 1e-20 and came > 0.01 and of_noise < 1e-10))
PY
