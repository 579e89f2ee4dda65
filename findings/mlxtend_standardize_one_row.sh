#!/usr/bin/env bash
# mlxtend's standardize with params of the training set: in what it is given a column that does not vary, so every column of one row, is not divided, and the params get 1 there, for later calls too.
set -euo pipefail
source "$(dirname "$0")/environment.sh" mlxtend==0.25.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1 matplotlib==3.11.2 joblib==1.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from mlxtend.preprocessing import standardize

random = numpy.random.default_rng(0)
train = random.normal(5, 10, (1000, 3))
_, params = standardize(train, return_params=True)
right = (numpy.array([[25.0, -15, 5], [5, 25, -15]]) - train.mean(0)) / train.std(0)
rows = numpy.array([[25.0, -15, 5], [5, 25, -15]])
show = lambda values: str(values.round(2).tolist())
print(f"mlxtend {version('mlxtend')}, means and deviations of 1,000 rows\nexpected: two rows are {show(right)}, whatever else is given, and the first alone is {show(right[:1])}")
together = standardize(rows, params=params)
print(f"seen: both {show(together)}, deviations {show(params['stds'])}")
alone = standardize(rows[:1], params=params)
print(f"seen: the first alone {show(alone)}, deviations then {show(params['stds'])}")
again = standardize(rows, params=params)
print(f"seen: both once more {show(again)}")
wrong = rows - train.mean(0)
raise SystemExit(not (numpy.allclose(together, right) and numpy.allclose(alone, wrong[:1]) and numpy.allclose(again, wrong)))
PY
