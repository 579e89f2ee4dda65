#!/usr/bin/env bash
# mlxtend's minmax_scaling takes its range only if neither min_val is 0 nor max_val is 1: asked for -1 to 1 or for 0 to 255, it scales to 0 to 1.
set -euo pipefail
source "$(dirname "$0")/environment.sh" mlxtend==0.25.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1 matplotlib==3.11.2 joblib==1.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from mlxtend.preprocessing import minmax_scaling

activations = numpy.random.default_rng(0).standard_normal((100, 2))
print(f"mlxtend {version('mlxtend')}\nexpected: columns have the minimum and the maximum that are asked for")
seen = {}
for low, high in (-2, 2), (5, 9), (-1, 1), (0, 255), (0, 10):
    scaled = minmax_scaling(activations, [0, 1], min_val=low, max_val=high)
    seen[low, high] = [(column.min().item(), column.max().item()) for column in scaled.T]
    print(f"seen: asked for {low} to {high}: {seen[low, high][0][0]:g} to {seen[low, high][0][1]:g}")
right = all(numpy.allclose(seen[each], [each] * 2) for each in ((-2, 2), (5, 9)))
raise SystemExit(not (right and all(numpy.allclose(seen[each], [(0, 1)] * 2) for each in ((-1, 1), (0, 255), (0, 10)))))
PY
