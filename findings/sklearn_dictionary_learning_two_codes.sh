#!/usr/bin/env bash
# scikit-learn's DictionaryLearning: fit_transform returns the lasso's codes of the fit, transform those of OMP, by default with a tenth of the dimensions: other latents, another number, a worse reconstruction.
set -euo pipefail
source "$(dirname "$0")/environment.sh" scikit-learn==1.9.1
"$python" -W ignore - <<'PY'
import numpy
import sklearn
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning

random = numpy.random.default_rng(0)
atoms = random.normal(size=(20, 16))
atoms /= numpy.linalg.norm(atoms, axis=1, keepdims=True)
codes = random.random((200, 20)) * (random.random((200, 20)) < 0.15)
rows = codes @ atoms
print(f"scikit-learn {sklearn.__version__}\nexpected: fit_transform(x) is fit(x).transform(x)")
seen = {}
for kind in MiniBatchDictionaryLearning, DictionaryLearning:
    model = kind(20, alpha=0.1, random_state=0)
    both = model.fit_transform(rows), model.transform(rows)
    latents = [(code != 0).sum(1).mean() for code in both]
    unexplained = [((rows - code @ model.components_) ** 2).sum() / (rows**2).sum() for code in both]
    seen[kind] = numpy.abs(both[0] - both[1]).max(), latents, unexplained
    print(
        f"seen: {kind.__name__}: codes up to {seen[kind][0]:.2f} apart; latents of a row {latents[0]:.2f} by fit_transform, "
        f"{latents[1]:.2f} by transform; unexplained {unexplained[0]:.3f} and {unexplained[1]:.3f}"
    )
batch, full = seen[MiniBatchDictionaryLearning], seen[DictionaryLearning]
raise SystemExit(not (batch[0] < 1e-8 and full[0] > 0.3 and full[1][0] > 2 * full[1][1] and full[2][1] > 2 * full[2][0]))
PY
