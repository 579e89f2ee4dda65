#!/usr/bin/env bash
# openTSNE with metric="dot": inner products are taken for distances, so of a row's neighbours the least alike gets the largest affinity, and the one most alike is left out.
set -euo pipefail
source "$(dirname "$0")/environment.sh" opentsne==1.0.4 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
OMP_NUM_THREADS=1 "$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from openTSNE.affinity import PerplexityBasedNN

ROWS, WIDTH, PERPLEXITY, ASKED = 1200, 16, 20, 200
rng = np.random.default_rng(0)
decoder = rng.standard_normal((ROWS, WIDTH)) * rng.uniform(0.5, 2, (ROWS, 1))
unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
print(f"openTSNE {version('opentsne')}, {ROWS} rows of a decoder, norms from {np.linalg.norm(decoder, axis=1).min():.1f} to {np.linalg.norm(decoder, axis=1).max():.1f}, perplexity {PERPLEXITY}")
print("expected: the larger a pair's inner product or cosine is, the larger its affinity; a row's most similar row is among its neighbours")
seen = {}
for metric, rows in (("cosine", unit), ("dot", decoder)):
    affinity = PerplexityBasedNN(decoder, perplexity=PERPLEXITY, metric=metric, symmetrize=False, random_state=0, n_jobs=1).P.toarray()
    alike = rows @ rows.T
    np.fill_diagonal(alike, -np.inf)
    own = float(np.mean(np.diag(affinity) > 0))
    np.fill_diagonal(affinity, 0)
    ranks, best = [], []
    for row in range(ASKED):
        found = np.flatnonzero(affinity[row])
        order, sizes = np.argsort(np.argsort(alike[row, found])), np.argsort(np.argsort(affinity[row, found]))
        ranks.append(np.corrcoef(order, sizes)[0, 1])
        best.append(affinity[row, np.argmax(alike[row])] > 0)
    seen[metric] = float(np.mean(ranks)), float(np.mean(best)), own
    print(f"seen: {metric}: affinities and similarities of a row's neighbours have a rank correlation of {seen[metric][0]:.2f}; the most similar row is among them for {seen[metric][1]:.0%} of rows, and {own:.0%} of rows are their own neighbours")
cosine, dot = seen["cosine"], seen["dot"]
raise SystemExit(not (cosine[0] > 0.9 and cosine[1] > 0.95 and cosine[2] == 0 and dot[0] < -0.9 and dot[1] < 0.6 and dot[2] > 0.3))
PY
