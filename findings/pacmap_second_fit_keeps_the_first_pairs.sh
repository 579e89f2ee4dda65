#!/usr/bin/env bash
# pacmap's PaCMAP: fit keeps its pairs by default, and a second fit takes them for other data, so its embedding is of neighbours that these rows do not have.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 scikit-learn==1.9.1 numba==0.68.1 faiss-cpu==1.15.1 pacmap==0.9.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from sklearn.neighbors import NearestNeighbors
from pacmap import PaCMAP

ROWS, GROUPS, WIDTH = 600, 6, 20
generator = np.random.default_rng(0)


def drawn():
    """Rows in groups that lie far apart, in any order, and the rows' groups."""
    group = generator.permutation(np.repeat(np.arange(GROUPS), ROWS // GROUPS))
    return (8 * generator.standard_normal((GROUPS, WIDTH))[group] + generator.standard_normal((ROWS, WIDTH))).astype(np.float32), group


def together(embedding, group):
    """The share of each row's 10 nearest in the embedding that are of its group."""
    nearest = NearestNeighbors(n_neighbors=11).fit(embedding).kneighbors(embedding, return_distance=False)[:, 1:]
    return float((group[nearest] == group[:, None]).mean())


print(f"pacmap {version('pacmap')}: two data sets of {ROWS} rows in {GROUPS} groups; by chance a neighbour is of the same group in 1 of {GROUPS} cases")
print("expected: fit_transform embeds what it is given, so neighbours are of one group, as with an object of its own")
(first, of_first), (second, of_second) = drawn(), drawn()
one = PaCMAP(random_state=0)
embeddings = one.fit_transform(first), one.fit_transform(second), PaCMAP(random_state=0).fit_transform(second)
before, after, own = (together(by, group) for by, group in zip(embeddings, (of_first, of_second, of_second)))
other = together(embeddings[1], of_first)
print(f"seen: the first data {before:.2f}; then the second, by the same object {after:.2f}, by one of its own {own:.2f}")
print(f"seen: by the groups of the first data, the second's embedding has {other:.2f}")
raise SystemExit(not (before > 0.95 and own > 0.95 and other > 0.95 and after < 0.3))
PY
