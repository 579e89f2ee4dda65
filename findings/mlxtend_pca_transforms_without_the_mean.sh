#!/usr/bin/env bash
# mlxtend's PrincipalComponentAnalysis: fit takes the mean off and transform does not, so components of activations whose mean is not 0 have a mean too, and whitened rows all point one way.
set -euo pipefail
source "$(dirname "$0")/environment.sh" mlxtend==0.25.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 scikit-learn==1.9.1 matplotlib==3.11.2 joblib==1.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy
from mlxtend.feature_extraction import PrincipalComponentAnalysis
from sklearn.decomposition import PCA

random = numpy.random.default_rng(0)
activations = random.standard_normal((500, 8)) * numpy.arange(1, 9) + 50


def of(components):
    unit = components / numpy.linalg.norm(components, axis=1, keepdims=True)
    cosine = (unit @ unit.T)[numpy.triu_indices(500, 1)].mean()
    return abs(components.mean(0)).max(), cosine


print(f"mlxtend {version('mlxtend')}, activations with a mean of 50, whitened\nexpected: components with a mean of 0, rows with a mean cosine of 0")
theirs = of(PrincipalComponentAnalysis(whitening=True).fit(activations).transform(activations))
less_mean = activations - activations.mean(0)
control = of(PrincipalComponentAnalysis(whitening=True).fit(activations).transform(less_mean))
right = of(PCA(whiten=True).fit_transform(activations))
for what, (mean, cosine) in ("mlxtend", theirs), ("mlxtend, given the rows less their mean", control), ("scikit-learn", right):
    print(f"seen: {what}: a component's mean is up to {mean:.2f}, the mean cosine {cosine:.2f}")
raise SystemExit(not (theirs[0] > 5 and theirs[1] > 0.9 and max(abs(value) for each in (control, right) for value in each) < 0.05))
PY
