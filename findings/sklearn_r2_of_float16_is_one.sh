#!/usr/bin/env bash
# scikit-learn's r2_score of float16: the targets' sum of squares is infinite above 65,504, so activations that are reconstructed fairly score a perfect 1; with larger errors it is NaN.
set -euo pipefail
source "$(dirname "$0")/environment.sh" scikit-learn==1.9.1
"$python" -W ignore - <<'PY'
import numpy
import sklearn
from sklearn.metrics import explained_variance_score, r2_score

random = numpy.random.default_rng(0)
target = random.normal(size=200) * 30
print(f"scikit-learn {sklearn.__version__}, 200 float16 activations with a standard deviation of 30\nexpected: the score of the same numbers in float64")
seen = {}
for error in 0.5, 12, 30:
    halves = target.astype("float16"), (target + random.normal(size=200) * error).astype("float16")
    right = r2_score(*(half.astype("float64") for half in halves))
    seen[error] = r2_score(*halves), right, explained_variance_score(*halves)
    print("seen: errors of {}: {:.4f}, in float64 {:.4f}; explained_variance_score of float16 {:.4f}".format(error, *seen[error]))
raise SystemExit(not (seen[12][0] == 1 and seen[12][1] < 0.9 and seen[12][2] < 0.9 and numpy.isnan(seen[30][0])))
PY
