#!/usr/bin/env bash
# mlxtend's GroupTimeSeriesSplit keeps the train size, or the number of splits, that it reckons for the first data: of longer data later on an "expanding" window leaves out the beginning, and the rolling one is too short.
set -euo pipefail
source "$(dirname "$0")/environment.sh" mlxtend==0.25.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1 matplotlib==3.11.2 joblib==1.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from mlxtend.evaluate import GroupTimeSeriesSplit
from sklearn.model_selection import TimeSeriesSplit

print(f"mlxtend {version('mlxtend')}\nexpected: as from scikit-learn's TimeSeriesSplit, splits depend on the data they are of, and not on data that were split before")


def splits(splitter, groups):
    """First and last row of each train set, and how many rows each has."""
    rows = numpy.arange(groups)
    return [(int(train[0]), int(train[-1]), len(train)) for train, _ in splitter.split(rows, groups=rows)]


ways = {
    "mlxtend, expanding": lambda: GroupTimeSeriesSplit(test_size=2, n_splits=3, shift_size=2, window_type="expanding"),
    "mlxtend, rolling": lambda: GroupTimeSeriesSplit(test_size=2, n_splits=3, shift_size=2),
    "mlxtend, rolling, of 4 groups": lambda: GroupTimeSeriesSplit(test_size=2, train_size=4, shift_size=2),
    "scikit-learn": lambda: TimeSeriesSplit(3, test_size=2),
}
seen = {}
for name, make in ways.items():
    splitter = make()
    splits(splitter, 20)
    seen[name] = splits(make(), 40), splits(splitter, 40)
    print("seen: {}: of 40 groups: {} splits, train rows (first, last, number) {}; by one that split 20 groups before: {} splits, {}".format(name, *(part for found in seen[name] for part in (len(found), found[-3:]))))
expanding, rolling, four = (seen[name] for name in ways if name.startswith("mlxtend"))
right = seen["scikit-learn"][0] == seen["scikit-learn"][1] == expanding[0] and all(first == 0 for first, *_ in expanding[0])
raise SystemExit(not (right and all(first == 20 for first, *_ in expanding[1]) and rolling[1][0][2] == rolling[0][0][2] - 20 and (len(four[0]), len(four[1])) == (18, 8)))
PY
