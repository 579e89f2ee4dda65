#!/usr/bin/env bash
# hyppo's dHsic shuffles each column for itself in its permutation test, also those of one variable: where a variable's columns go together, independent variables are found dependent many times too often.
set -euo pipefail
source "$(dirname "$0")/environment.sh" hyppo==0.5.2 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 numba==0.68.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from hyppo.d_variate import dHsic

ROWS, TESTS, SHUFFLES = 40, 60, 99
print(f"hyppo {version('hyppo')}: {TESTS} tests of two independent variables, whose columns are alike but for a tenth of noise")
print("expected: p is up to 0.05 in 5% of the tests, as when the rows of one variable are shuffled")


def rejected(width):
    """Shares of the tests with p up to 0.05, by hyppo and by shuffling rows."""
    random, test, counts = numpy.random.default_rng(0), dHsic(), [0, 0]
    numpy.random.seed(0)
    for _ in range(TESTS):
        one, other = (random.standard_normal((ROWS, 1)) + 0.1 * random.standard_normal((ROWS, width)) for _ in range(2))
        counts[0] += test.test(one, other, reps=SHUFFLES).pvalue <= 0.05
        statistic = test.statistic(one, other)
        null = [test.statistic(one, random.permutation(other)) for _ in range(SHUFFLES)]
        counts[1] += (1 + sum(value >= statistic for value in null)) / (1 + SHUFFLES) <= 0.05
    return counts[0] / TESTS, counts[1] / TESTS


seen = {}
for width in (1, 20):
    seen[width] = rejected(width)
    print("seen: {} columns to a variable: {:.0%} by hyppo, {:.0%} by shuffling rows".format(width, *seen[width]))
raise SystemExit(not (max(seen[1] + seen[20][1:]) < 0.15 and seen[20][0] > 0.3))
PY
