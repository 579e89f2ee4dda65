#!/usr/bin/env bash
# mlxtend's RandomHoldoutSplit takes no notice of stratify, False by default: it stratifies in any case, so shares of classes never vary, and continuous targets end in an error.
set -euo pipefail
source "$(dirname "$0")/environment.sh" mlxtend==0.25.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1 matplotlib==3.11.2 joblib==1.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from mlxtend.evaluate import RandomHoldoutSplit
from sklearn.model_selection import train_test_split

rows = numpy.zeros((200, 1))
classes = numpy.repeat([0, 1], 100)


def counts(stratify):
    splits = (next(RandomHoldoutSplit(0.5, random_seed=seed, stratify=stratify).split(rows, classes)) for seed in range(50))
    return [int(classes[valid].sum()) for _, valid in splits]


plain = [int(train_test_split(classes, test_size=0.5, random_state=seed)[1].sum()) for seed in range(50)]
seen = {stratify: counts(stratify) for stratify in (True, False)}
show = lambda values: f"from {min(values)} to {max(values)} of the second class"
print(f"mlxtend {version('mlxtend')}, half of 200 rows held out, 50 seeds\nexpected: with stratify=False {show(plain)}, as train_test_split has")
for stratify, values in seen.items():
    print(f"seen: stratify={stratify}: {show(values)}")
try:
    next(RandomHoldoutSplit(0.5, random_seed=0).split(rows, numpy.linspace(0, 1, 200)))
    error = ""
except ValueError as caught:
    error = str(caught)
print(f"seen: targets that are continuous: {error[:60]}")
raise SystemExit(not (set(seen[True]) == set(seen[False]) == {50} and len(set(plain)) > 5 and error))
PY
