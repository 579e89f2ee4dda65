#!/usr/bin/env bash
# hyppo's Friedman-Rafsky test counts edges between the samples, few where they differ, and takes p from the other tail: for samples wholly apart p is 1, for ones that repel each other it is small.
set -euo pipefail
source "$(dirname "$0")/environment.sh" hyppo==0.5.2 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 numba==0.68.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from hyppo.ksample import Energy, FriedmanRafsky

random = numpy.random.default_rng(0)
print(f"hyppo {version('hyppo')}\nexpected: a small p where the two samples differ, as from Energy; few trees, by Friedman and Rafsky, speak against one distribution")
labels = numpy.repeat([0, 1], 40)
seen = {}
for apart in (0, 1, 2, 5):
    rows = random.standard_normal((80, 2)) + apart * labels[:, None]
    test = FriedmanRafsky()
    found = test.test(rows, labels, reps=1000, random_state=0)
    null = [test.statistic(rows, random.permutation(labels)) for _ in range(1000)]
    lower = (1 + sum(value <= found.uncor_stat for value in null)) / 1001
    energy = Energy().test(rows[:40], rows[40:]).pvalue
    seen[apart] = found.pvalue, lower, energy
    print(f"seen: means {apart} apart: {found.uncor_stat} trees, p = {found.pvalue:.3f}; share of permutations with no more trees {lower:.3f}; Energy's p = {energy:.2g}")
right = all(lower < 0.05 and energy < 0.05 for apart, (_, lower, energy) in seen.items() if apart > 1) and seen[0][1] > 0.05
raise SystemExit(not (right and all(seen[apart][0] > 0.95 for apart in (2, 5))))
PY
