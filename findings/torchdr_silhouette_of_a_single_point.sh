#!/usr/bin/env bash
# torchdr's silhouette gives a cluster of one point the best coefficient there is, 1, and not 0: the more points stand alone the better the score, so a choice of the number of clusters by it ends at one for each point.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 torchdr==0.5 matplotlib==3.11.2
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
import torch
import torchdr
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import silhouette_samples, silhouette_score

torch.set_num_threads(1)
random = numpy.random.default_rng(0)
centres = random.uniform(-10, 10, (5, 2))
rows = numpy.concatenate([centre + random.standard_normal((40, 2)) for centre in centres])
print(f"torchdr {version('torchdr')}: {len(rows)} points in {len(centres)} clouds")
print("expected: as in Rousseeuw 1987, which it names, and scikit-learn: 0 for a cluster of one point, and the best score near 5 clusters")
seen = {}
for count in (2, 5, 20, 100, 150, 190, 199):
    labels = AgglomerativeClustering(count).fit_predict(rows)
    sizes = numpy.bincount(labels)[labels]
    samples = torchdr.silhouette_samples(torch.from_numpy(rows), torch.from_numpy(labels)).numpy()
    reference = silhouette_samples(rows, labels)
    alone = samples[sizes == 1]
    others = abs(samples - reference)[sizes > 1].max()
    scores = torchdr.silhouette_score(torch.from_numpy(rows), torch.from_numpy(labels)).item(), silhouette_score(rows, labels)
    seen[count] = *scores, others, bool((alone == 1).all())
    print("seen: {} clusters, {} of one point: {:.3f}, by scikit-learn {:.3f}; other points differ by up to {:.0e}".format(count, len(alone), *scores, others))
best = max(seen, key=lambda count: seen[count][0])
print(f"the best by torchdr are {best} clusters, by scikit-learn {max(seen, key=lambda count: seen[count][1])}")
right = all(others < 1e-6 and alone for *_, others, alone in seen.values()) and max(seen, key=lambda count: seen[count][1]) < 10
raise SystemExit(not (right and best == 199 and seen[199][0] > 0.99 and seen[199][1] < 0.1))
PY
