#!/usr/bin/env bash
# scikit-learn's f_classif of float32: sums of squares are subtracted from one another, so dimensions with a large mean get F of hundreds, or below 0.
set -euo pipefail
source "$(dirname "$0")/environment.sh" scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$python" -W ignore - <<'PY'
import numpy as np
import sklearn
from sklearn.feature_selection import SelectKBest, f_classif, f_regression

TOKENS, WIDTH, MASSIVE = 20_000, 64, 16
rng = np.random.default_rng(0)
label = rng.integers(0, 2, TOKENS)
acts = rng.standard_normal((TOKENS, WIDTH))
acts[:, 0] += 0.2 * label
acts[:, -MASSIVE:] += 1000
print(f"scikit-learn {sklearn.__version__}, {TOKENS:,} activations of {WIDTH} dimensions, variance 1 in each; only dimension 0 knows the label, and the last {MASSIVE} have the mean 1000")
print("expected: F of float32 is nearly that of float64, as with f_regression; the best dimension is 0")
seen = {}
for score in (f_regression, f_classif):
    for dtype in (np.float64, np.float32):
        x = acts.astype(dtype)
        f = score(x, label)[0]
        best = int(SelectKBest(score, k=1).fit(x, label).get_support(indices=True)[0])
        seen[score.__name__, dtype.__name__] = f, best
        print(f"seen: {score.__name__} of {dtype.__name__}: F of dimension 0 is {f[0]:.0f}, of the last {MASSIVE} from {f[-MASSIVE:].min():.1f} to {f[-MASSIVE:].max():.1f}; SelectKBest takes dimension {best}")
(wrong, taken), (right, _) = seen.pop(("f_classif", "float32")), seen["f_classif", "float64"]
others = all(best == 0 and np.allclose(f, right, rtol=0.01, atol=0.05) for f, best in seen.values())
raise SystemExit(not (others and taken != 0 and wrong.min() < -10 and wrong.max() > 2 * right[0]))
PY
