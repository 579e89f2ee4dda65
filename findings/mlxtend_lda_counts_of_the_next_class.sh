#!/usr/bin/env bash
# mlxtend's LinearDiscriminantAnalysis weighs each class's mean by the size of the next class, and the last one's by 0: discriminants depend on how classes are numbered.
set -euo pipefail
source "$(dirname "$0")/environment.sh" mlxtend==0.25.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1 matplotlib==3.11.2 joblib==1.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from mlxtend.feature_extraction import LinearDiscriminantAnalysis
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis as Reference

random = numpy.random.default_rng(0)
sizes, means = (10, 500, 500), numpy.array([[0.0, 10.0], [3.0, 0.0], [-3.0, 0.0]])
classes = numpy.repeat(numpy.arange(3), sizes)
rows = random.standard_normal((len(classes), 2)) + means[classes]


def first(labels, kind):
    if kind is Reference:
        direction = Reference(solver="eigen", n_components=1).fit(rows, labels).scalings_[:, 0]
    else:
        direction = LinearDiscriminantAnalysis(n_discriminants=1).fit(rows, labels).w_[:, 0].real
    scores = rows @ direction
    gap = abs(scores[classes == 1].mean() - scores[classes == 2].mean()) / scores[classes == 1].std()
    return direction / numpy.linalg.norm(direction), gap


print(f"mlxtend {version('mlxtend')}: two classes of 500 at (3, 0) and (-3, 0), one of 10 at (0, 10)")
print("expected: the first discriminant tells the large classes apart, by 6 deviations, however they are numbered")
seen = {}
for what, labels in ("first", classes), ("last", (classes + 2) % 3):
    for kind in Reference, LinearDiscriminantAnalysis:
        direction, seen[what, kind] = first(labels, kind)
        print(f"seen: the small class {what}, {kind.__module__.split('.')[0]}: {abs(direction).round(2)}, {seen[what, kind]:.2f} deviations")
wrong = seen.pop(("first", LinearDiscriminantAnalysis))
raise SystemExit(not (wrong < 1 and min(seen.values()) > 5))
PY
