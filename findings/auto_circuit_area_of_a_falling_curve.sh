#!/usr/bin/env bash
# auto-circuit's area under a curve is taken above the value without edges, and is 0.001 where that is negative: KL divergences, which fall, all have 0.001; log probabilities one area whatever the curve.
set -euo pipefail
source "$(dirname "$0")/environment_auto_circuit.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

from auto_circuit.metrics.area_under_curve import algo_measurements_auc
from auto_circuit.metrics.prune_metrics.prune_metrics import PRUNE_METRIC_DICT

EDGES = [0, 1, 10, 100, 1_000, 10_000]
CURVES = {
    "Clean KL Div": {
        "all with 10 edges": [5, 3, 0.01, 0.01, 0.01, 0.01],
        "all with 10,000 edges": [5, 5, 5, 5, 4.9, 0.01],
        "nothing with any": [5] * 6,
    },
    "Answer Logprob": {
        "all with 10 edges": [-8, -4, -0.1, -0.1, -0.1, -0.1],
        "all with 10,000 edges": [-8, -8, -8, -8, -7, -0.1],
        "worse with more": [-8, -9, -12, -15, -18, -20],
    },
    "Answer Logit": {
        "all with 10 edges": [1, 4, 9, 9, 9, 9],
        "all with 10,000 edges": [1, 1, 1, 1, 2, 9],
        "nothing with any": [1] * 6,
    },
}
print(f"auto-circuit {version('auto-circuit')}: areas of three circuit searches, with each metric's own scales, at {EDGES} edges")
print("expected: the search that needs 10 edges and the one that needs 10,000 have areas of their own")
seen = {}
for key, curves in CURVES.items():
    metric = PRUNE_METRIC_DICT[key]
    points = {name: list(zip(EDGES, values)) for name, values in curves.items()}
    areas = seen[key] = algo_measurements_auc(points, metric.log_x, metric.log_y, metric.y_min)
    print(f"seen: {key} ({'lower' if metric.lower_better else 'higher'} is better): " + ", ".join(f"{name} {area:.3f}" for name, area in areas.items()))
falling, logs, rising = (list(areas.values()) for areas in seen.values())
raise SystemExit(not (falling == [1e-3] * 3 and min(logs) == max(logs) and rising[0] > 5 * rising[1] > rising[2]))
PY
