#!/usr/bin/env bash
# Quantus' Completeness asks two sums of floats to be the same to the bit: exact attributions of a linear model fail it.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 quantus==0.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from quantus import Completeness

IMAGES = 64
torch.manual_seed(0)
print(f"Quantus {version('quantus')}: Completeness of {IMAGES} images, a linear model, each pixel's attribution is exactly what its removal changes")
print("expected: True, but for rounding; False for attributions that are twice as large")
shares = {}
for side in (2, 8, 28):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(side * side, 2, bias=False)).eval().requires_grad_(False)
    images, labels = torch.rand(IMAGES, 1, side, side), torch.arange(IMAGES) % 2
    # A removed pixel takes the image's smallest value.
    images[:, :, 0, 0] = 0
    exact = (images.flatten(1) * model[1].weight[labels]).view_as(images)
    off = (exact.flatten(1).sum(1) - model(images)[torch.arange(IMAGES), labels]).abs().max()
    for name, by in {"exact": exact, "doubled": 2 * exact}.items():
        scores = Completeness(abs=False, normalise=False, disable_warnings=True)(
            model=model, x_batch=images.numpy(), y_batch=labels.numpy(), a_batch=by.numpy(), softmax=False, device="cpu"
        )
        shares[name, side] = float(np.mean(scores))
    print(f"seen: {side} x {side} pixels: True for {shares['exact', side]:.0%} of the exact ones, whose sums are off by {float(off):.0e} at most, and {shares['doubled', side]:.0%} of the doubled ones")
raise SystemExit(not (shares["exact", 28] < 0.3 and shares["exact", 8] < 0.8 and not any(shares["doubled", side] for side in (2, 8, 28))))
PY
