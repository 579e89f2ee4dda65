#!/usr/bin/env bash
# Quantus' Monotonicity starts from the baseline and puts the baseline in at each step, never the input's features: it is True for whatever is attributed.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 quantus==0.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from quantus import Monotonicity

IMAGES, SIDE = 16, 8
torch.manual_seed(0)
calls = []


class Model(torch.nn.Module):
    """Two logits, linear in the pixels: each pixel lifts the first and lowers the second."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(SIDE * SIDE, 1) * torch.tensor([1, -1]))

    def forward(self, images):
        calls.append(images.numpy().copy())
        return images.flatten(1) @ self.weight


model = Model().eval().requires_grad_(False)
images, labels = torch.rand(IMAGES, 1, SIDE, SIDE), torch.arange(IMAGES) % 2
exact = (images.flatten(1) * model.weight.T[labels]).view_as(images)
print(f"Quantus {version('quantus')}: {IMAGES} images, a linear model, attributions that are exact, negated or noise; defaults")
print("expected: features come in one by one, least attributed first, and True is where the logit never falls meanwhile")
shares, varied = {}, {}
for name, by in {"exact": exact, "negated": -exact, "noise": torch.randn(exact.shape)}.items():
    calls.clear()
    scores = Monotonicity(abs=False, disable_warnings=True)(
        model=model, x_batch=images.numpy(), y_batch=labels.numpy(), a_batch=by.numpy(), softmax=False, device="cpu"
    )
    shares[name] = float(np.mean(scores))
    varied[name] = len({call.tobytes() for call in calls})
    # The definition: the logit as features come in, the least attributed first.
    order = by.flatten(1).argsort(1)
    right = (exact.flatten(1).gather(1, order) >= 0).all(1).float().mean()
    print(f"seen: {name}: True for {shares[name]:.0%} of the images ({float(right):.0%} by definition); {len(calls)} forwards of {varied[name]} input")
raise SystemExit(not (all(share == 1 for share in shares.values()) and all(many == 1 for many in varied.values())))
PY
