#!/usr/bin/env bash
# Quantus' ROAD and SensitivityN keep the first batch's results, 64 images by default: the other images run and are dropped.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 quantus==0.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from quantus import ROAD, SensitivityN

IMAGES, SIDE, BATCH = 128, 8, 64
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, 2)).eval().requires_grad_(False)
images = torch.rand(IMAGES, 1, SIDE, SIDE)
predicted = model(images).argmax(1)
# The first half is labelled as the model has it, the second half wrongly, so that its accuracy is about 0.
labels = torch.where(torch.arange(IMAGES) < BATCH, predicted, 1 - predicted)
attributions = (images.flatten(1) * model[1].weight[labels]).view_as(images)


def scores(metric, rows):
    """The scores of these images."""
    np.random.seed(0)
    given = dict(x_batch=images[rows].numpy(), y_batch=labels[rows].numpy(), a_batch=attributions[rows].numpy())
    return metric(model=model, **given, softmax=False, device="cpu")


print(f"Quantus {version('quantus')}: {IMAGES} images, batches of {BATCH} as by default; of the second {BATCH} the model gets none right")
print("expected: both metrics are of all images, so ROAD's accuracy is halfway between that of the first and that of the second 64")
road = {name: scores(ROAD(percentages=[2, 5], noise=0.01, disable_warnings=True), rows)
        for name, rows in {"all": slice(None), "first": slice(BATCH), "second": slice(BATCH, None)}.items()}
for name, by in road.items():
    print(f"seen: ROAD, {name} images: " + ", ".join(f"{part}% removed {float(x):.3f}" for part, x in by.items()))
several = {name: float(scores(SensitivityN(features_in_step=8, normalise=False, disable_warnings=True), rows)[0])
           for name, rows in {"all": slice(None), "first": slice(BATCH)}.items()}
print("seen: SensitivityN: " + ", ".join(f"{name} images {x:.6f}" for name, x in several.items()))
first = all(abs(road["all"][part] - road["first"][part]) < 0.05 and abs(road["all"][part] - road["second"][part]) > 0.5 for part in (2, 5))
raise SystemExit(not (first and several["all"] == several["first"]))
PY
