#!/usr/bin/env bash
# dcor's distance correlation of two vectors, by default its fast algorithm, sums products in the values' dtype: of float32 with a mean of 1,000, or of uint16, it is above 1.
set -euo pipefail
source "$(dirname "$0")/environment.sh" dcor==0.7 numpy==2.4.6
"$python" -W ignore - <<'PY'
import dcor
import numpy

random = numpy.random.default_rng(0)
counts = random.integers(0, 100, 2000)
activation = random.standard_normal(2000)
pairs = {
    ("float32", "mean 0"): (activation, activation + random.standard_normal(2000)),
    ("float32", "mean 1,000"): (activation + 1000, activation + random.standard_normal(2000) + 1000),
    ("int64", "counts to 126"): (counts, counts + random.integers(0, 27, 2000)),
    ("uint16", "counts to 126"): (counts, counts + random.integers(0, 27, 2000)),
}
print(f"dcor {dcor.__version__}\nexpected: a number from 0 to 1, and that of float64")
wrong = {}
for (dtype, what), vectors in pairs.items():
    right = dcor.distance_correlation(*vectors)
    vectors = [vector.astype(dtype) for vector in vectors]
    fast, naive = dcor.distance_correlation(*vectors), dcor.distance_correlation(*vectors, method="naive")
    wrong[dtype, what] = abs(fast - right), abs(naive - right), fast
    print(f"seen: {dtype}, {what}: {fast:.4f}; by method='naive' {naive:.4f}; in float64 {right:.4f}")
(centred, large, wide, narrow) = wrong.values()
naive = max(each[1] for each in wrong.values())
raise SystemExit(not (naive < 0.01 and max(centred[0], wide[0]) < 0.01 and large[0] > 0.3 and narrow[2] > 1.5))
PY
