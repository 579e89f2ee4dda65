#!/usr/bin/env bash
# hyppo's PartialCorr is 0, with p = 0.5, as soon as z correlates negatively with x or y: whether a strong partial correlation is found depends on the sign that z or x is written with.
set -euo pipefail
source "$(dirname "$0")/environment.sh" hyppo==0.5.2 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 numba==0.68.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from hyppo.conditional import PartialCorr

random = numpy.random.default_rng(0)
z = random.standard_normal(200)
x = z + random.standard_normal(200)
y = x + z + random.standard_normal(200)
print(f"hyppo {version('hyppo')}: y is x and z and noise")
print("expected: another sign of z changes nothing, one of x or y the sign of the partial correlation, which is that of the two residuals")


def residuals(values, control):
    both = numpy.stack([control, numpy.ones_like(control)], 1)
    return values - both @ numpy.linalg.lstsq(both, values, rcond=None)[0]


seen = {}
for signs in ((1, 1, 1), (1, 1, -1), (-1, 1, 1), (1, -1, 1), (-1, -1, 1)):
    a, b, c = (sign * values for sign, values in zip(signs, (x, y, z), strict=True))
    exact = numpy.corrcoef(residuals(a, c), residuals(b, c))[0, 1]
    found = PartialCorr().test(a, b, c)
    seen[signs] = found.stat - exact, found.stat, found.pvalue, exact
    print(f"seen: x, y, z times {signs}: {found.stat:.3f}, p = {found.pvalue:.2g}; of the residuals {exact:.3f}")
right = abs(seen[1, 1, 1][0]) < 1e-9 and seen[1, 1, 1][2] < 1e-9
wrong = all(found == 0 and p == 0.5 and abs(exact) > 0.7 for signs, (_, found, p, exact) in seen.items() if signs != (1, 1, 1))
raise SystemExit(not (right and wrong))
PY
