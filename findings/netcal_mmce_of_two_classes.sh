#!/usr/bin/env bash
# netcal's MMCE of two classes given as one column: it holds whether the predicted class is right against the probability of class 1, so calibrated probabilities below 0.5 count as errors; as two columns it is near 0.
set -euo pipefail
source "$(dirname "$0")/environment_netcal.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from netcal.metrics import ECE, MMCE

SAMPLES = 4_000
draws = np.random.default_rng(0)


def measured(metric, one):
    """Of the probability of class 1 alone, and of both classes'."""
    return float(metric.measure(one, truth)), float(metric.measure(np.stack([1 - one, one], 1), truth))


print(f"netcal {version('netcal')}: {SAMPLES} probabilities of class 1, and classes drawn by them; 'shape=(n_samples, [n_classes])': one column or two")
print("expected: the same errors from one column as from two, near 0 for what is calibrated and larger for what is not")
seen = {}
for name, low, high in (("from 0 to 1", 0, 1), ("from 0 to 0.2", 0, 0.2), ("from 0.8 to 1", 0.8, 1)):
    probability = draws.uniform(low, high, SAMPLES)
    truth = (draws.random(SAMPLES) < probability).astype(int)
    seen[name] = measured(MMCE(), probability)
    ece = measured(ECE(10), probability)
    print(f"seen: calibrated, {name}: MMCE {seen[name][0]:.3f} from one column, {seen[name][1]:.3f} from two; ECE {ece[0]:.3f} and {ece[1]:.3f}")
probability = draws.uniform(0, 0.2, SAMPLES)
truth = np.zeros(SAMPLES, dtype=int)
seen["never"] = measured(MMCE(), probability)
print(f"seen: from 0 to 0.2, and never class 1: MMCE {seen['never'][0]:.3f} from one column, {seen['never'][1]:.3f} from two")
middle, low, high, never = seen.values()
raise SystemExit(not (low[0] > 0.4 and middle[0] > 0.1 and all(by[1] < 0.05 for by in (middle, low, high)) and abs(high[0] - high[1]) < 1e-6 and never[0] > never[1] + 0.3))
PY
