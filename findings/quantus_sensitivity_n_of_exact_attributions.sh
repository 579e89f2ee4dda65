#!/usr/bin/env bash
# Quantus' SensitivityN: what it removes adds up from step to step, and the attributions it compares are of the last step alone, so exact ones of a linear model do not score 1.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 quantus==0.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from quantus import SensitivityN

IMAGES, SIDE, STEP = 64, 8, 4
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, 2)).eval().requires_grad_(False)
images, labels = torch.rand(IMAGES, 1, SIDE, SIDE), torch.arange(IMAGES) % 2
# A removed pixel takes the image's smallest value.
images[:, :, 0, 0] = 0
exact = (images.flatten(1) * model[1].weight[labels]).view_as(images)
print(f"Quantus {version('quantus')}: {IMAGES} images, a linear model, each pixel's attribution is exactly what its removal changes")
print("expected: 1, as the sum of n attributions is what removing these n pixels changes")
batch = dict(model=model, x_batch=images.numpy(), y_batch=labels.numpy(), a_batch=exact.numpy(), softmax=False, device="cpu")
mean = float(SensitivityN(features_in_step=STEP, normalise=False, disable_warnings=True)(**batch)[0])
by_n = SensitivityN(features_in_step=STEP, normalise=False, return_aggregate=False, disable_warnings=True)(**batch)
parts = exact.flatten(1).sort(1, descending=True).values.view(IMAGES, -1, STEP).sum(2)
# What it computes, by correlation over the images: all that is gone until step n beside the attributions of step n.
ours = [float(np.corrcoef(parts[:, : n + 1].sum(1), parts[:, n])[0, 1]) for n in range(len(by_n))]
print(f"seen: {mean:.3f} on average; for n = {STEP}, {2 * STEP}, ...: " + ", ".join(f"{float(x):.2f}" for x in by_n))
raise SystemExit(not (np.allclose(by_n, ours, atol=0.02) and mean < 0.9 and float(by_n[0]) > 0.999))
PY
