#!/usr/bin/env bash
# concept-erasure's QuadraticEraser: its global_mean is the mean of the classes' means, so where one is rarer all activations move.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 concept-erasure==0.2.4
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from concept_erasure import LeaceEraser, OracleEraser, QuadraticEraser

TOKENS, WIDTH = 20_000, 16
torch.manual_seed(0)
label = (torch.arange(TOKENS) % 20 == 0).long()
activations = torch.randn(TOKENS, WIDTH)
activations[label == 1] += 4.0
mean = activations.mean(0)
print(f"concept-erasure {version('concept-erasure')}: {TOKENS} activations, one in 20 of the concept, whose mean is 4 higher everywhere")
print(f"expected: after erasing, the mean is what it was, {float(mean.mean()):.2f}; global_mean's docstring: centroid of the dataset")
quadratic = QuadraticEraser.fit(activations, label)
came = {
    "LeaceEraser": LeaceEraser.fit(activations, label)(activations),
    "OracleEraser": OracleEraser.fit(activations, label)(activations, label),
    "QuadraticEraser": quadratic(activations, label),
}
moved = {}
for name, rows in came.items():
    moved[name] = float((rows.mean(0) - mean).norm() / (activations - mean).norm(dim=1).mean())
    print(f"seen: {name}: mean {float(rows.mean()):.2f}, moved by {moved[name]:.1%} of an activation's distance from it")
of_classes = (activations[label == 0].mean(0) + activations[label == 1].mean(0)) / 2
is_that = torch.allclose(quadratic.global_mean, of_classes, atol=1e-3)
print(f"seen: its global_mean is (mean without + mean with the concept) / 2: {is_that}")
raise SystemExit(not (moved["LeaceEraser"] < 1e-3 and moved["OracleEraser"] < 1e-3 and moved["QuadraticEraser"] > 1 and is_that))
PY
