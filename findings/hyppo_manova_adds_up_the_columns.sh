#!/usr/bin/env bash
# hyppo's MANOVA of several columns: its matrices B and W are one number each, squares summed over the columns, so p depends on the columns' units, and the largest column drowns the others.
set -euo pipefail
source "$(dirname "$0")/environment.sh" hyppo==0.5.2 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 numba==0.68.1 statsmodels==0.15.0 pandas==3.1.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
import pandas
from hyppo.ksample import MANOVA
from statsmodels.multivariate.manova import MANOVA as Reference

random = numpy.random.default_rng(0)
first, second = random.standard_normal((60, 3)), random.standard_normal((60, 3)) + [1, 0, 0]
print(f"hyppo {version('hyppo')}, statsmodels {version('statsmodels')}: two groups of 60 rows, apart in the first of three columns")
print("expected: Pillai's trace tr(B (B + W)^-1), as its documentation has it, which no column's unit changes")


def pillai(*groups):
    """Pillai's trace and p by statsmodels."""
    columns = [f"c{index}" for index in range(groups[0].shape[1])]
    frame = pandas.DataFrame(numpy.concatenate(groups), columns=columns)
    frame["group"] = numpy.repeat(["first", "second"], [len(group) for group in groups])
    row = Reference.from_formula(f"{' + '.join(columns)} ~ group", frame).mv_test().results["group"]["stat"].loc["Pillai's trace"]
    return float(row["Value"]), float(row["Pr > F"])


seen, exact = {}, {}
for units in ((1.0,), (1.0, 1.0, 1.0), (1.0, 1.0, 30.0), (30.0, 1.0, 1.0)):
    groups = [group[:, : len(units)] * units for group in (first, second)]
    seen[units], exact[units] = tuple(map(float, MANOVA().test(*groups))), pillai(*groups) if len(units) > 1 else None
    reference = "" if exact[units] is None else "; by statsmodels {:.3f}, p = {:.2g}".format(*exact[units])
    print("seen: columns in units of {}: {:.3f}, p = {:.2g}{}".format(units, *seen[units], reference))
three, large_other, large_first = list(seen)[1:]
centred = [group - group.mean(0) for group in (first, second)]
within = sum((group**2).sum() for group in centred)
mean = (first.mean(0) + second.mean(0)) / 2
between = sum(60 * ((group.mean(0) - mean) ** 2).sum() for group in (first, second))
print(f"sums over the columns of the squares between, by those of between and within: {between / (between + within):.3f}")
right = max(abs(exact[units][0] - exact[three][0]) for units in (large_other, large_first)) < 1e-9 and exact[three][1] < 1e-5
wrong = seen[large_other][1] > 0.05 and abs(seen[three][0] - between / (between + within)) < 1e-9 and abs(seen[large_first][0] - seen[three][0]) > 0.05
raise SystemExit(not (right and wrong))
PY
