#!/usr/bin/env bash
# shapiq's BaselineImputer given one row as the baseline, as zeros: the model is never run on it, the baseline value is 0, and Shapley values do not sum to the prediction with it; given that row twice it is right.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 shapiq==1.4.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from shapiq import TabularExplainer
from shapiq.imputer import BaselineImputer

FEATURES, BIAS = 4, 10.0
WEIGHTS = np.arange(1.0, FEATURES + 1)
row = np.ones(FEATURES)
NOTHING = np.zeros((1, FEATURES), dtype=bool)


def model(rows):
    return BIAS + np.asarray(rows, dtype=float) @ WEIGHTS


print(f"shapiq {version('shapiq')}: a linear model that gives zeros {BIAS:g} and the explained row {model(row):g}; the baseline is a row of zeros")
print(f"expected: a game without players is worth 0 once normalised, which is the default; the baseline value is {BIAS:g}, and with the Shapley values the prediction")
seen = {}
for count in (1, 2):
    zeros = np.zeros((count, FEATURES))
    nothing = float(BaselineImputer(model, zeros, x=row, normalize=True)(NOTHING)[0])
    values = TabularExplainer(model, zeros, imputer="baseline", index="SV", max_order=1).explain(row, budget=2**FEATURES)
    total = values.baseline_value + values.get_n_order_values(1).sum()
    seen[count] = nothing, values.baseline_value, total
    print(f"seen: zeros given as {count} row{'s' * (count > 1)}: no player {nothing:g}, baseline value {values.baseline_value:g}, with the Shapley values {total:.3f}")
one, two = seen[1], seen[2]
raise SystemExit(not (np.allclose(two, (0, BIAS, model(row))) and np.allclose(one, (BIAS, 0, model(row) - BIAS))))
PY
