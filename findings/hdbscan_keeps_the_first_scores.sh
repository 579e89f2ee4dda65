#!/usr/bin/env bash
# hdbscan's relative_validity_, outlier_scores_ and exemplars_, once read, stay through every later fit: a sweep over min_cluster_size that uses one object scores each setting as the first.
set -euo pipefail
source "$(dirname "$0")/environment.sh" hdbscan==0.8.44 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import hdbscan
import numpy

random = numpy.random.default_rng(0)
centres = random.uniform(-10, 10, (8, 2))
first = numpy.concatenate([centre + random.standard_normal((60, 2)) for centre in centres])
print(f"hdbscan {version('hdbscan')}\nexpected: as labels_ and probabilities_, what is read after a fit is of that fit")


def facts(clusterer):
    return {
        "labels_": clusterer.labels_,
        "relative_validity_": float(clusterer.relative_validity_),
        "outlier_scores_": clusterer.outlier_scores_,
        "exemplars_": numpy.concatenate(clusterer.exemplars_),
    }


seen = {}
kept = hdbscan.HDBSCAN(gen_min_span_tree=True)
for size in (5, 15, 40):
    alone = facts(hdbscan.HDBSCAN(min_cluster_size=size, gen_min_span_tree=True).fit(first))
    again = facts(kept.set_params(min_cluster_size=size).fit(first))
    seen[size] = {name: numpy.array_equal(alone[name], again[name]) for name in alone}
    validity = alone["relative_validity_"], again["relative_validity_"]
    print("seen: min_cluster_size={}: relative_validity_ {:.3f}; from an object that was fitted before {:.3f}; the same as alone: {}".format(size, *validity, seen[size]))
other = hdbscan.HDBSCAN()
other.fit(first).outlier_scores_
rows = len(other.fit(first[:100]).outlier_scores_)
print(f"seen: then fitted to 100 rows: {len(other.labels_)} labels, {rows} outlier scores")
right = all(seen[5].values()) and all(found["labels_"] for found in seen.values())
wrong = not any(seen[size][name] for size in (15, 40) for name in ("relative_validity_", "exemplars_", "outlier_scores_"))
raise SystemExit(not (right and wrong and rows == len(first)))
PY
