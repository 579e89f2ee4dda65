#!/usr/bin/env bash
# Quantus' PointingGame: scores are kept as booleans, so an image whose segmentation is empty, NaN by intent, counts as a hit.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 quantus==0.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from quantus import PointingGame, RelevanceMassAccuracy, TopKIntersection

IMAGES, SIDE, EMPTY = 10, 8, 4
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, 2)).eval()
images = np.random.default_rng(0).random((IMAGES, 1, SIDE, SIDE)).astype(np.float32)
objects = np.zeros_like(images)
objects[EMPTY:, :, :2, :2] = 1
# Nothing that is attributed lies on an object.
attributions = np.zeros_like(images)
attributions[:, :, -1, -1] = 1
batch = dict(model=model, x_batch=images, y_batch=np.zeros(IMAGES, int), a_batch=attributions, s_batch=objects, softmax=False, device="cpu")
print(f"Quantus {version('quantus')}: {IMAGES} images of which {EMPTY} show no object; all attributions lie beside the objects")
print(f"expected: no hit; {EMPTY} images are NaN, as in the other localisation metrics")
metrics = PointingGame(disable_warnings=True), TopKIntersection(k=1, disable_warnings=True), RelevanceMassAccuracy(disable_warnings=True)
scores = {type(metric).__name__: np.asarray(metric(**batch), float) for metric in metrics}
for name, by in scores.items():
    print(f"seen: {name}: {[float(x) for x in by]}, mean {np.nanmean(by):.2f}")
game, *others = scores.values()
rest = all(np.isnan(by[:EMPTY]).all() and not by[EMPTY:].any() for by in others)
raise SystemExit(not (rest and (game[:EMPTY] == 1).all() and not game[EMPTY:].any()))
PY
