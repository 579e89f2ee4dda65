#!/usr/bin/env bash
# hyppo's Hotelling of one column does not divide by the variance: in another unit the same numbers are no difference at all, or one with p below 1e-9.
set -euo pipefail
source "$(dirname "$0")/environment.sh" hyppo==0.5.2 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 numba==0.68.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from hyppo.ksample import Hotelling
from scipy.stats import ttest_ind

random = numpy.random.default_rng(0)
alike = random.standard_normal((60, 2)), random.standard_normal((60, 2)) + 0.2
apart = alike[0], alike[1] + 1
print(f"hyppo {version('hyppo')}\nexpected: no unit changes the statistic; of one column it is the square of Student's t, by its documentation a generalization of which it is")
seen = {}
for name, groups in (("much alike", alike), ("apart", apart)):
    for unit in (0.05, 1, 20):
        first, second = (unit * group for group in groups)
        one, two = Hotelling().test(first[:, :1], second[:, :1]), Hotelling().test(first, second)
        t, p = ttest_ind(first[:, 0], second[:, 0])
        seen[name, unit] = one.pvalue.item(), two.pvalue.item(), p
        print(f"seen: two groups {name}, in units of {unit}: of one column {one.stat.item():.3g}, p = {one.pvalue.item():.2g}; t squared {t**2:.3g}, p = {p:.2g}; of two columns p = {two.pvalue.item():.2g}")
right = all(numpy.allclose(seen[name, unit][1:], seen[name, 1][1:], rtol=1e-6) for name, unit in seen)
wrong = seen["much alike", 20][0] < 1e-9 < 0.05 < seen["much alike", 20][2] and seen["apart", 0.05][0] > 0.5 and seen["apart", 0.05][2] < 1e-3
raise SystemExit(not (right and wrong))
PY
