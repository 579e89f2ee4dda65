#!/usr/bin/env bash
# repsim's svcca makes a representation's columns orthonormal before it looks for the directions with 99% of its variance: all are alike by then, so noise stays, and what comes out is the CCA of cca.
set -euo pipefail
source "$(dirname "$0")/environment.sh" repsim==0.1.5 numpy==2.4.6
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
import repsim

ROWS, SIGNAL, WIDTH = 1000, 4, 24
print(f"repsim {version('repsim')}: two representations share {SIGNAL} directions; {WIDTH - SIGNAL} more of each have a thousandth of their spread, and are noise of its own")
print("expected: as its documentation has it, each is centred and reduced to 99% of its variance, then CCA: the mean squared correlation of what is left, and 1 with itself")


def by_the_definition(one, other):
    bases = []
    for rows in (one, other):
        left, singular, _ = numpy.linalg.svd(rows - rows.mean(0), full_matrices=False)
        kept = 1 + (numpy.cumsum(singular**2) / (singular**2).sum() < 0.99).sum()
        bases.append(left[:, :kept])
    return (numpy.linalg.svd(bases[0].T @ bases[1])[1] ** 2).mean()


random = numpy.random.default_rng(0)
shared = random.standard_normal((ROWS, SIGNAL))


def representation(noise, mean=0.0):
    rows = numpy.concatenate([shared, noise * random.standard_normal((ROWS, WIDTH - SIGNAL))], 1)
    return rows @ numpy.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0] + mean


seen = {}
for name, noise, mean in (("noise of 0.001", 1e-3, 0.0), ("noise of 1", 1.0, 0.0), ("noise of 0.001, and a mean of 10", 1e-3, 10.0)):
    one, other = representation(noise, mean), representation(noise, mean)
    found, plain = repsim.svcca([one, other]), repsim.cca([one, other])
    seen[name] = found[0, 1], plain[0, 1], by_the_definition(one, other), found[0, 0]
    print("seen: {}: svcca {:.3f}, cca {:.3f}, SVCCA by its definition {:.3f}; svcca of one with itself {:.3f}".format(name, *seen[name]))
small, large, mean = seen.values()
right = abs(large[0] - large[2]) < 1e-9 and all(values[2] > 0.99 for values in (small, mean))
wrong = abs(small[0] - small[1]) < 1e-9 and small[0] < 0.25 and mean[3] < 0.97
raise SystemExit(not (right and wrong))
PY
