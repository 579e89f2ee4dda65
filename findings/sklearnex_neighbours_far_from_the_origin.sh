#!/usr/bin/env bash
# scikit-learn-intelex' nearest neighbours of float32 far from the origin, as with a massive activation: distances come of squared norms in float32, so a row is 2 away from itself and most neighbours are others.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 scikit-learn==1.9.1 scikit-learn-intelex==2026.2.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import sklearn.neighbors
import sklearnex.neighbors

generator = np.random.default_rng(0)
activations = generator.normal(size=(3000, 16))
print(f"scikit-learn {sklearn.__version__}, scikit-learn-intelex {version('scikit-learn-intelex')}")
print("expected: the neighbours that float64 has, as scikit-learn, which computes float32's distances in float64, by blocks")
seen = {}
for mean in (0, 300, 3000):
    rows = (activations + np.r_[mean, np.zeros(15)]).astype("float32")
    exact = np.sqrt(((rows[:500, None].astype("float64") - rows) ** 2).sum(-1))
    for package in (sklearn, sklearnex):
        distances, indices = package.neighbors.NearestNeighbors(n_neighbors=2, algorithm="brute").fit(rows).kneighbors(rows[:500])
        right = (indices[:, 1] == exact.argsort(1)[:, 1]).mean()
        seen[mean, package.__name__] = right, distances[:, 0].max()
        print(f"seen: a dimension has the mean {mean}, {package.__name__}: {right:.1%} of nearest neighbours are right; a row is up to {distances[:, 0].max():.3f} from itself")
own = [right == 1 and self < 1e-3 for (_, name), (right, self) in seen.items() if name == "sklearn"]
raise SystemExit(not (all(own) and seen[0, "sklearnex"][0] == 1 and seen[3000, "sklearnex"][0] < 0.5 and seen[3000, "sklearnex"][1] > 1))
PY
