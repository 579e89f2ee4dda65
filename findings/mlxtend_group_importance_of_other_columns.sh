#!/usr/bin/env bash
# mlxtend's feature_importance_permutation with feature_groups shuffles the first columns, as many as the group has, and not the group's; they stay shuffled in the caller's array.
set -euo pipefail
source "$(dirname "$0")/environment.sh" mlxtend==0.25.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1 matplotlib==3.11.2 joblib==1.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from mlxtend.evaluate import feature_importance_permutation

random = numpy.random.default_rng(0)
features = random.standard_normal((1000, 6))
predict = lambda rows: rows[:, 3:].sum(1)
target, before = predict(features), features.copy()
measure = lambda groups: feature_importance_permutation(features, target, predict, "r2", feature_groups=groups, seed=0)[0]
single = measure([0, 1, 2, 3, 4, 5])
unchanged = (features == before).all(0)
groups = measure([[0, 1, 2], [3, 4, 5]])
after = (features == before).all(0)
print(f"mlxtend {version('mlxtend')}: the target is the sum of columns 3, 4 and 5")
print("expected: an importance of 0 for columns 0 to 2 and of 2 for columns 3 to 5, and the array as it was")
print(f"seen: each column for itself {single.round(2)}, columns left as they were {unchanged}")
print(f"seen: the two groups {groups.round(2)}, columns left as they were {after}")
right = abs(single[:3]).max() == 0 and single[3:].min() > 0.5 and unchanged.all()
raise SystemExit(not (right and abs(groups).max() == 0 and not after[:3].any() and after[3:].all()))
PY
