#!/usr/bin/env bash
# scikit-learn's PCA of float32 by default takes the mean off products of millions, not off the data: dimensions that have a large mean and hardly vary become the first component.
set -euo pipefail
source "$(dirname "$0")/environment.sh" scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$python" -W ignore - <<'PY'
import numpy as np
import sklearn
from sklearn.decomposition import PCA

WIDTH, MASSIVE = 64, 4
rng = np.random.default_rng(0)
spread = np.geomspace(1, 0.01, WIDTH)
print(f"scikit-learn {sklearn.__version__}, activations of {WIDTH} dimensions with standard deviations from 1 to 0.01; the last {MASSIVE} have the mean 7000, as massive activations do")
print(f"expected: the covariance is that of centred data, as its documentation says, so the largest variance is near 1, and the last {MASSIVE} have next to no part in its component")
seen = {}
for tokens in (9 * WIDTH, 20_000):
    acts = rng.standard_normal((tokens, WIDTH)) * spread
    acts[:, -MASSIVE:] += 7000
    for dtype in (np.float64, np.float32):
        for solver in ("auto", "full"):
            pca = PCA(svd_solver=solver).fit(acts.astype(dtype))
            seen[tokens, dtype.__name__, solver] = pca.explained_variance_[0], np.linalg.norm(pca.components_[0, -MASSIVE:])
            taken = f"auto, which is {pca._fit_svd_solver}" if solver == "auto" else solver
            print(f"seen: {tokens:,} tokens of {dtype.__name__}, svd_solver {taken}: the largest variance is {pca.explained_variance_[0]:.2f}, the last dimensions' part in its component {seen[tokens, dtype.__name__, solver][1]:.2f}")
wrong = [key for key, (variance, part) in seen.items() if variance > 50 and part > 0.9]
right = [key for key, (variance, part) in seen.items() if 0.8 < variance < 1.3 and part < 0.1]
raise SystemExit(not (wrong == [(20_000, "float32", "auto")] and len(right) == len(seen) - 1))
PY
