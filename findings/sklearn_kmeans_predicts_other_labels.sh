#!/usr/bin/env bash
# scikit-learn's KMeans of float32 with a massive activation: fit takes the mean off, predict does not, so of the very rows that were fitted many get another label; transform has the right distances.
set -euo pipefail
source "$(dirname "$0")/environment.sh" scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$python" -W ignore - <<'PY'
import numpy
import sklearn
from sklearn.cluster import KMeans

ROWS, MEAN = 600, 30_000
random = numpy.random.default_rng(0)
rows = random.normal(size=(ROWS, 16))
rows[: ROWS // 2, 0] += 8
rows[:, 3] += MEAN
print(f"scikit-learn {sklearn.__version__}, two clusters 8 apart, variance 1; one dimension has a mean of {MEAN:,}")
print(f"expected: predict gives the rows of fit the labels that labels_ has, {ROWS} of {ROWS}")
seen = {}
for dtype in numpy.float64, numpy.float32:
    x = rows.astype(dtype)
    model = KMeans(2, n_init=3, random_state=0).fit(x)
    split = model.labels_ == model.labels_[0]
    clean = split[: ROWS // 2].all() and not split[ROWS // 2 :].any()
    same = [int((labels == model.labels_).sum()) for labels in (model.predict(x), model.transform(x).argmin(1))]
    seen[dtype] = bool(clean), *same
    print("seen: {}: labels_ are the clusters: {}; as labels_ by predict {}, by transform {}".format(dtype.__name__, *seen[dtype]))
full, half = seen[numpy.float64], seen[numpy.float32]
raise SystemExit(not (full == (True, ROWS, ROWS) and half[0] and half[2] == ROWS and half[1] < 0.9 * ROWS))
PY
