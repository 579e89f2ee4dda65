#!/usr/bin/env bash
# HypotheSAEs' separation score, how the quick start selects: a latent's "top 100" are filled up with rows where it is 0, so rows in the order of their labels make a dead latent the best.
set -euo pipefail
source "$(dirname "$0")/environment_hypothesaes.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from hypothesaes.select_neurons import select_neurons

ROWS, RARE = 5_000, 10
generator = np.random.default_rng(0)
target = (np.arange(ROWS) < ROWS // 2).astype(float)
NAMES = ("noise", "related to the target", f"rare: {RARE} rows, all of target 1", "dead")
activations = np.zeros((ROWS, len(NAMES)), np.float32)
for latent, chance in enumerate((np.full(ROWS, 0.3), np.where(target == 1, 0.3, 0.2))):
    activations[:, latent] = np.where(generator.random(ROWS) < chance, generator.random(ROWS), 0)
activations[generator.choice(ROWS // 2, RARE, replace=False), 2] = 1
print(f"HypotheSAEs {version('hypothesaes')}: {ROWS} rows, half of them with target 1; the mean target of a latent's 100 top rows less that of its zeros")
print("expected: the rare latent, which tells the target, comes first with 0.5; the dead one, which has no top rows, comes last; order is no matter")
score = {}
for order, rows in (("by their labels", np.arange(ROWS)), ("shuffled", generator.permutation(ROWS))):
    chosen, scores = select_neurons(activations[rows], target[rows], len(NAMES), method="separation_score")
    score[order] = {NAMES[latent]: float(by) for latent, by in zip(chosen, scores)}
    print(f"seen: rows {order}: " + "; ".join(f"{name} {by:.3f}" for name, by in score[order].items()))
sorted_, shuffled = score.values()
dead = list(sorted_)[0] == "dead" and abs(sorted_["dead"]) > 0.3
raise SystemExit(not (dead and max(sorted_[NAMES[2]], shuffled[NAMES[2]]) < 0.3))
PY
