#!/usr/bin/env bash
# concept-erasure's LEACE on whitened activations: the shrunk covariance divides zero by zero, has large negative eigenvalues, and nothing is erased.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 concept-erasure==0.2.4
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from concept_erasure import LeaceFitter

TOKENS, WIDTH = 20_000, 256
torch.manual_seed(0)
label = (torch.rand(TOKENS) < 0.5).long()
raw = torch.randn(TOKENS, WIDTH, dtype=torch.float64)
raw[:, 0] += 3 * label
raw -= raw.mean(0)
values, vectors = torch.linalg.eigh(raw.T @ raw / TOKENS)
white = raw @ (vectors * values.rsqrt())
print(f"concept-erasure {version('concept-erasure')}: {TOKENS} activations, PCA-whitened: their covariance is the identity")
print("expected: eigenvalues of sigma_xx about 1; after erasing, the means with and without the concept are one")


def apart(rows):
    return float((rows[label == 1].mean(0) - rows[label == 0].mean(0)).norm())


seen = {}
for name, rows, shrinkage in [
    ("before whitening, by default", raw, True),
    ("whitened, by default", white.float(), True),
    ("whitened, shrinkage=False", white.float(), False),
]:
    fitter = LeaceFitter.fit(rows, label, shrinkage=shrinkage)
    spectrum = torch.linalg.eigvalsh(fitter.sigma_xx)
    seen[name] = float(spectrum[0]), apart(fitter.eraser(rows)) / apart(rows)
    print(f"seen: {name}: eigenvalues {spectrum[0]:.4g} to {spectrum[-1]:.4g}; {seen[name][1]:.1%} of the distance of the means is left")
good = all(seen[name][0] > 0 and seen[name][1] < 0.01 for name in ("before whitening, by default", "whitened, shrinkage=False"))
negative, left = seen["whitened, by default"]
raise SystemExit(not (good and negative < -10 and left > 0.1))
PY
