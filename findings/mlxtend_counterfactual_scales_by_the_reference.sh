#!/usr/bin/env bash
# mlxtend's create_counterfactual divides by how far the explained row is from the median, and not by the data's median absolute deviation: a row's most extreme feature costs least to change, and a row at the median gets none.
set -euo pipefail
source "$(dirname "$0")/environment.sh" mlxtend==0.25.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1 matplotlib==3.11.2 joblib==1.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from mlxtend.evaluate import create_counterfactual
from scipy.optimize import minimize


class Model:
    """A probability of the mean of three features, which count alike."""

    def predict_proba(self, rows):
        positive = 1 / (1 + numpy.exp(-4 * rows.mean(1)))
        return numpy.stack([1 - positive, positive], 1)


data = numpy.random.default_rng(0).standard_normal((1001, 3)) * [1, 0.5, 2]
data -= numpy.median(data, 0)
deviation = numpy.median(abs(data), 0)
model, START, WEIGHT = Model(), data[numpy.random.RandomState(0).randint(len(data))], 100
print(f"mlxtend {version('mlxtend')}: median absolute deviations {deviation.round(2)}")
print("expected: as in Wachter et al., the distance is divided by these, so the third feature, which varies most, is what changes")


def by_the_paper(row):
    loss = lambda new: WEIGHT * (model.predict_proba(new[None])[0, 1] - 0.9) ** 2 + (abs(new - row) / deviation).sum()
    return minimize(loss, START, method="Nelder-Mead").x


seen = {}
for row in ([-1.5, -0.1, -0.2], [-0.1, -1.5, -0.2], [-0.1, -0.2, -1.5], [-1.0, -0.5, 0.0]):
    row = numpy.array(row)
    found = create_counterfactual(row, 1, model, data, y_desired_proba=0.9, lammbda=WEIGHT, random_seed=0)
    seen[tuple(row)] = found - row, by_the_paper(row) - row, numpy.array_equal(found, START)
    print("seen: {}: changed by {}; with the deviation {}; it is the row to start from: {}".format(row, *(change.round(2) for change in seen[tuple(row)][:2]), seen[tuple(row)][2]))
largest = lambda change: int(abs(change).argmax())
right = all(largest(exact) == 2 for _, exact, _ in seen.values())
first, second, third, median = seen.values()
wrong = [largest(change) for change, *_ in (first, second, third)] == [0, 1, 2] and median[2]
raise SystemExit(not (right and wrong and not any(start for *_, start in (first, second, third))))
PY
