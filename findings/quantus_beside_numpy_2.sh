#!/usr/bin/env bash
# Quantus as pip installs it: it asks for numpy 1.19.5 or later and gets 2.4, where trapz is gone and NaN has one name: IROF, PixelFlipping's area and Continuity end in an error.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 quantus==0.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import requires, version

import numpy as np
import torch
from quantus import IROF, Continuity, PixelFlipping, Selectivity

SIDE = 16
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE**2, 2)).eval().requires_grad_(False)
images = torch.rand(4, 1, SIDE, SIDE)
labels = model(images).argmax(1)
attributions = (images.flatten(1) * model[1].weight[labels]).view_as(images)


def explain(model, inputs, targets, **_):
    """Input times weight."""
    return np.stack([(row.ravel() * model[1].weight[int(label)].numpy()).reshape(row.shape) for row, label in zip(inputs, targets)])


asked = next(line for line in requires("quantus") if line.startswith("numpy"))
print(f"Quantus {version('quantus')}, which requires {asked}, with numpy {version('numpy')}: four of its metrics on valid images")
print("expected: scores")
batch = dict(model=model, x_batch=images.numpy(), y_batch=labels.numpy(), a_batch=attributions.numpy(), softmax=False, device="cpu", explain_func=explain)
metrics = {
    "IROF": IROF(disable_warnings=True),
    "PixelFlipping, its area": PixelFlipping(features_in_step=16, return_auc_per_sample=True, disable_warnings=True),
    "Continuity, NaN where a prediction changes": Continuity(nr_steps=4, return_nan_when_prediction_changes=True, disable_warnings=True),
    "Selectivity": Selectivity(patch_size=4, disable_warnings=True),
}
seen = {}
for name, metric in metrics.items():
    try:
        seen[name] = f"{len(metric(**batch))} scores"
    except AttributeError as error:
        seen[name] = f"AttributeError: {str(error).splitlines()[0]}"
    print(f"seen: {name}: {seen[name][:110]}")
*others, last = seen.values()
raise SystemExit(not (all(by.startswith("AttributeError") for by in others) and last == "4 scores"))
PY
