#!/usr/bin/env bash
# scikit-learn-intelex' LinearRegression and Ridge of float32: one dimension with a large mean that hardly varies, as a massive activation, and all coefficients are about 0; scikit-learn's own are right.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 scikit-learn==1.9.1 scikit-learn-intelex==2026.2.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import sklearn.linear_model
import sklearnex.linear_model

ROWS, WIDTH = 3000, 16
generator = np.random.default_rng(0)
activations = generator.normal(size=(ROWS, WIDTH))
target = activations[:, 1:] @ generator.normal(size=WIDTH - 1) + 0.1 * generator.normal(size=ROWS)  # not of the first one
print(f"scikit-learn {sklearn.__version__}, scikit-learn-intelex {version('scikit-learn-intelex')}")
print("expected: R2 of 0.99 and more, whatever the mean of a dimension of which the target does not depend")
seen = {}
for mean, dtype in ((0, "float32"), (300, "float32"), (3000, "float32"), (3000, "float64")):
    rows = activations * np.r_[0.01, np.ones(WIDTH - 1)] + np.r_[mean, np.zeros(WIDTH - 1)]
    for name in ("LinearRegression", "Ridge"):
        for package in (sklearn.linear_model, sklearnex.linear_model):
            model = getattr(package, name)().fit(rows.astype(dtype), target.astype(dtype))
            residual = target - model.predict(rows.astype(dtype)).astype("float64")
            seen[mean, dtype, name, package.__name__] = 1 - residual.var() / target.var()
        mine, other = (seen[mean, dtype, name, package] for package in ("sklearn.linear_model", "sklearnex.linear_model"))
        print(f"seen: a dimension of {mean} and 0.01 around it, {dtype}, {name}: R2 is {mine:.3f} with scikit-learn, {other:.3f} with its extension")
wrong = [value for key, value in seen.items() if key[:2] == (3000, "float32") and key[3] == "sklearnex.linear_model"]
right = [value for key, value in seen.items() if key[:2] != (3000, "float32") or key[3] == "sklearn.linear_model"]
raise SystemExit(not (max(wrong) < 0.5 and min(right) > 0.99))
PY
