#!/usr/bin/env bash
# scikit-learn's mutual information of sparse codes: a sparse matrix counts as discrete, so each value is a class and noise comes out on top.
set -euo pipefail
source "$(dirname "$0")/environment.sh" scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
"$python" -W ignore - <<'PY'
import numpy as np
import sklearn
from scipy.sparse import csr_array
from sklearn.feature_selection import SelectKBest, f_classif, mutual_info_classif

TOKENS, LATENTS, NOISE = 600, 40, 39
rng = np.random.default_rng(0)
label = rng.integers(0, 2, TOKENS)
codes = np.where(rng.random((TOKENS, LATENTS)) < 0.2, rng.random((TOKENS, LATENTS)), 0.0)
codes[:, 0] = np.where(label & (rng.random(TOKENS) < 0.7), 1 + rng.random(TOKENS), 0.0)  # fires on the label alone
codes[:, NOISE] = rng.random(TOKENS)  # fires on every token, and says nothing
print(f"scikit-learn {sklearn.__version__}, codes of {LATENTS} latents; latent 0 tells the label, latent {NOISE} is dense noise")
print("expected: a sparse matrix gives what the same matrix gives that is dense, as f_classif does; latent 0 is the best")
best, of_noise = {}, {}
for score in (f_classif, mutual_info_classif):
    for name, matrix in (("dense", codes), ("sparse", csr_array(codes))):
        values = score(matrix, label)
        values = values[0] if isinstance(values, tuple) else values
        best[score.__name__, name] = int(SelectKBest(score, k=1).fit(matrix, label).get_support().argmax())
        of_noise[score.__name__, name] = values[NOISE]
        print(f"seen: {score.__name__}, {name}: best latent {best[score.__name__, name]}; latent 0 {values[0]:.3f}, latent {NOISE} {values[NOISE]:.3f}, "
              f"median of the others {np.median(values[1:NOISE]):.3f}")
told = abs(of_noise["mutual_info_classif", "sparse"] - np.log(2)) < 0.01
raise SystemExit(not (list(best.values()) == [0, 0, 0, NOISE] and told and of_noise["mutual_info_classif", "dense"] < 0.1))
PY
