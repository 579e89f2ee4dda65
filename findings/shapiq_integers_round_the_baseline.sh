#!/usr/bin/env bash
# shapiq's imputers write what replaces a feature into a copy of the explained row: where that is of integers, as counts are, a mean of 0.56 becomes 0, and Shapley values are those of another baseline.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 shapiq==1.4.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from shapiq import TabularExplainer

FEATURES, ROWS = 4, 100
WEIGHTS = np.arange(1.0, FEATURES + 1)
data = np.random.default_rng(0).integers(0, 2, (ROWS, FEATURES))
row = np.ones(FEATURES, dtype=int)


def model(rows):
    return np.asarray(rows, dtype=float) @ WEIGHTS


def shown(numbers):
    return "[" + ", ".join(f"{x:.2f}" for x in numbers) + "]"


print(f"shapiq {version('shapiq')}: a linear model with weights {shown(WEIGHTS)}; {ROWS} rows of 0 and 1, with means {shown(data.mean(0))}; the row of ones is explained")
right = (row - data.mean(0)) * WEIGHTS
print(f"expected: weight times what the feature is above its mean, {shown(right)}, in any dtype; with the baseline value they sum to the prediction, {model(row):.2f}")
CASES = {
    "baseline imputer, rows of floats": ("baseline", data.astype(float), row.astype(float)),
    "baseline imputer, the same rows of integers": ("baseline", data, row),
    "marginal imputer, background of floats, row of floats": ("marginal", data * 0.9, row.astype(float)),
    "marginal imputer, background of floats, row of integers": ("marginal", data * 0.9, row),
}
seen = []
for name, (imputer, background, explained) in CASES.items():
    values = TabularExplainer(model, background, imputer=imputer, index="SV", max_order=1).explain(explained, budget=2**FEATURES)
    exact = (explained - background.mean(0)) * WEIGHTS
    got = values.get_n_order_values(1)
    total = values.baseline_value + got.sum()
    seen.append((np.allclose(got, exact, atol=1e-3), total))
    print(f"seen: {name}: {shown(got)}, exact {shown(exact)}; with the baseline value {total:.2f}")
floats, integers, both, mixed = seen
raise SystemExit(not (floats[0] and both[0] and not integers[0] and not mixed[0] and integers[1] > model(row) + 5))
PY
