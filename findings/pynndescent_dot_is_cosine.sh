#!/usr/bin/env bash
# pynndescent's metric="dot" normalises what it is given: its neighbours are those of the cosine, and the largest inner products are others.
set -euo pipefail
source "$(dirname "$0")/environment.sh" pynndescent==0.7.0 numpy==2.4.6
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from pynndescent import NNDescent

ROWS, WIDTH, NEIGHBOURS = 500, 16, 5
rng = np.random.default_rng(0)
decoder = (rng.standard_normal((ROWS, WIDTH)) * rng.uniform(0.1, 10, (ROWS, 1))).astype(np.float32)
unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
truth = {"inner product": np.argsort(-(decoder @ decoder.T), 1)[:, :NEIGHBOURS], "cosine": np.argsort(-(unit @ unit.T), 1)[:, :NEIGHBOURS]}
print(f"pynndescent {version('pynndescent')}, rows of a decoder, of norms from 0.4 to 40\nexpected: metric='dot' finds the rows with the largest inner products, as metric='inner_product' does")
seen = {}
for metric in ("dot", "inner_product"):
    index = NNDescent(decoder, metric=metric, n_neighbors=15, random_state=0)
    found = index.query(decoder, k=NEIGHBOURS, epsilon=0.5)[0]
    seen[metric] = {name: float(np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(found, rows, strict=True)])) for name, rows in truth.items()}
    print(f"seen: {metric}: it found " + " and ".join(f"{share:.0%} of the {NEIGHBOURS} best by {name}" for name, share in seen[metric].items()))
dot, inner = seen["dot"], seen["inner_product"]
raise SystemExit(not (dot["cosine"] > 0.9 > 0.6 > dot["inner product"] and inner["inner product"] > 0.8 > 0.6 > inner["cosine"]))
PY
