#!/usr/bin/env bash
# Quantus' AttributionLocalisation, weighted=True: it multiplies by the object's share of all pixels of the batch but two images, so the score falls with the batch, and is infinite up to two.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 quantus==0.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from quantus import AttributionLocalisation

SIDE, OBJECT = 8, 4
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, 2)).eval()
ratio, weight = 0.5, SIDE**2 / OBJECT**2
print(f"Quantus {version('quantus')}: the same image once and more often; half of what is attributed lies on the object, which has 1/{weight:g} of the pixels")
print(f"expected: {ratio} without weights; with them {ratio * weight:g}, the ratio divided by the object's share, as Kohlbrenner et al. have it; whatever the batch")
seen = {}
for weighted in (False, True):
    for images in (1, 2, 3, 4, 34):
        objects, attributions = np.zeros((2, images, 1, SIDE, SIDE), np.float32)
        objects[:, :, :OBJECT, :OBJECT] = 1
        attributions[:, :, 0, 0] = attributions[:, :, -1, -1] = 1
        scores = AttributionLocalisation(weighted=weighted, disable_warnings=True)(
            model=model, x_batch=np.ones_like(objects), y_batch=np.zeros(images, int), a_batch=attributions, s_batch=objects, softmax=False, device="cpu"
        )
        seen[weighted, images] = float(scores[0])
    print(f"seen: weighted={weighted}: " + ", ".join(f"{images} images {seen[weighted, images]:.5g}" for images in (1, 2, 3, 4, 34)))
plain = all(seen[False, images] == 0.5 for images in (1, 2, 3, 4, 34))
infinite = np.isinf([seen[True, 1], seen[True, 2]]).all()
raise SystemExit(not (plain and infinite and np.isclose(seen[True, 3], ratio / weight) and np.isclose(seen[True, 34], ratio / weight / 32)))
PY
