#!/usr/bin/env bash
# faiss' PCAMatrix with eigen_power=-0.5, "full whitening": it divides by sums of squares and not by variances, so what it whitens has the variance 1 over the number of rows it was trained on.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 scikit-learn==1.9.1 faiss-cpu==1.15.1
"$python" -W ignore - <<'PY'
import faiss
import numpy as np
from sklearn.decomposition import PCA

faiss.omp_set_num_threads(1)
generator = np.random.default_rng(0)
mixing = generator.normal(size=(16, 16))
held_out = (generator.normal(size=(5000, 16)) @ mixing).astype("float32")
print(f"faiss {faiss.__version__}\nexpected: whitened rows have the standard deviation 1 in every direction, however many rows the matrix was trained on")
seen = {}
for rows in (200, 1000, 5000):
    training = (generator.normal(size=(rows, 16)) @ mixing).astype("float32")
    whitening = faiss.PCAMatrix(16, 4, -0.5)
    whitening.train(training)
    other = PCA(4, whiten=True, svd_solver="full").fit(training)
    spread = whitening.apply(held_out).std(0)
    seen[rows] = spread.mean(), other.transform(held_out).std(0).mean(), np.abs(spread * np.sqrt(rows) - 1).max()
    print(f"seen: trained on {rows} rows: {seen[rows][0]:.4f} with faiss, 1/sqrt({rows}) is {rows**-0.5:.4f}; {seen[rows][1]:.4f} with scikit-learn's PCA(whiten=True)")
raise SystemExit(not all(abs(other - 1) < 0.1 and error < 0.2 for _, other, error in seen.values()))
PY
