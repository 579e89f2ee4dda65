#!/usr/bin/env bash
# hyppo's DcorrX from lag 1 on takes rows of the distance matrices for data and computes their distances again: the lagged terms are several times too large, and are right for distances given as such.
set -euo pipefail
source "$(dirname "$0")/environment.sh" hyppo==0.5.2 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 numba==0.68.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from hyppo.independence import Dcorr
from hyppo.time_series import DcorrX
from hyppo.tools import compute_dist

random = numpy.random.default_rng(0)
STEPS = 120
print(f"hyppo {version('hyppo')}\nexpected: the sum over the lags j of (n - j) / n times Dcorr of x[j:] and y[:n - j], as its documentation has it")
earlier = random.standard_normal((STEPS, 3))
sign = random.choice([-1, 1], (STEPS, 3))
series = {
    "itself, one step earlier": numpy.roll(earlier, 1, 0),
    "its size, one step earlier, and a sign of chance": numpy.roll(abs(earlier) * sign, 1, 0),
    "its square, one step earlier": numpy.roll(earlier**2, 1, 0),
}
seen = {}
for name, later in series.items():
    lags = [DcorrX(max_lag=lag).statistic(later, earlier)[0] for lag in (0, 1)]
    distances = compute_dist(later, earlier)
    given = [DcorrX(compute_distance=None, max_lag=lag).statistic(*distances)[0] for lag in (0, 1)]
    exact = (STEPS - 1) / STEPS * Dcorr().statistic(later[1:], earlier[:-1])
    seen[name] = lags[1] - lags[0], given[1] - given[0], exact, lags[0] - Dcorr().statistic(later, earlier)
    print("seen: a series beside {}: the term of lag 1 {:.3f}, with distances given {:.3f}, by the formula {:.3f}".format(name, *seen[name]))
right = all(abs(given - exact) < 1e-9 and abs(first) < 1e-9 for _, given, exact, first in seen.values())
wrong = [term / exact for term, _, exact, _ in seen.values()]
raise SystemExit(not (right and abs(wrong[0] - 1) < 1e-6 and min(wrong[1:]) > 2))
PY
