#!/usr/bin/env bash
# mlxtend's shuffle_arrays_unison and shuffled_split with random_seed=0: 0 is taken for no seed, so each call gives another split; other seeds are set for all of numpy's global generator.
set -euo pipefail
source "$(dirname "$0")/environment.sh" mlxtend==0.25.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1 matplotlib==3.11.2 joblib==1.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from mlxtend.evaluate import BootstrapOutOfBag
from mlxtend.preprocessing import shuffle_arrays_unison
from mlxtend.preprocessing.shuffle import shuffled_split

rows = numpy.arange(1000)
ways = {
    "shuffle_arrays_unison": lambda seed: shuffle_arrays_unison([rows], random_seed=seed)[0],
    "shuffled_split": lambda seed: shuffled_split(rows[:, None], rows, random_seed=seed)[1],
    "BootstrapOutOfBag": lambda seed: next(BootstrapOutOfBag(1, random_seed=seed).split(rows))[0],
}
print(f"mlxtend {version('mlxtend')}, random_seed given twice\nexpected: the same rows twice, and numpy's global generator as it was")
numpy.random.seed(5)
seen = {}
for name, way in ways.items():
    for seed in 1, 0:
        same = numpy.array_equal(way(seed), way(seed))
        numpy.random.seed(5)
        fresh = numpy.random.random()
        numpy.random.seed(5)
        way(seed)
        seen[name, seed] = same, numpy.random.random() == fresh
        print(f"seen: {name}, random_seed={seed}: the same twice {same}, generator as it was {seen[name, seed][1]}")
right = seen["BootstrapOutOfBag", 0] == seen["BootstrapOutOfBag", 1] == (True, True)
wrong = [seen[name, seed] for name in list(ways)[:2] for seed in (1, 0)]
raise SystemExit(not (right and wrong == [(True, False), (False, False)] * 2))
PY
