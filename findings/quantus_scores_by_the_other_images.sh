#!/usr/bin/env bash
# Quantus normalises attributions by the largest of all images that are given, not of each: EffectiveComplexity and LocalLipschitzEstimate of one image depend on which others there are.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 quantus==0.6.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from quantus import EffectiveComplexity, LocalLipschitzEstimate

SIDE = 8
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIDE * SIDE, 16), torch.nn.Softplus(), torch.nn.Linear(16, 2)).eval()
image = torch.rand(1, 1, SIDE, SIDE)


def gradients(model, inputs, targets, **_):
    """Input times gradient of the targets' logits."""
    rows = torch.tensor(inputs, dtype=torch.float32).requires_grad_()
    chosen = model(rows)[torch.arange(len(rows)), torch.tensor(targets)].sum()
    return (torch.autograd.grad(chosen, rows)[0] * rows).detach().numpy()


def scored(metric, images):
    """The first image's score."""
    np.random.seed(0)
    labels = np.zeros(len(images), int)
    batch = dict(x_batch=images.numpy(), y_batch=labels, a_batch=gradients(model, images.numpy(), labels))
    return float(metric(model=model, **batch, explain_func=gradients, softmax=False, device="cpu")[0])


print(f"Quantus {version('quantus')}: one image alone, and beside a second one whose values are larger; defaults but for what is printed")
print("expected: the first image's score is one number")
metrics = {
    "EffectiveComplexity, eps 0.01": lambda: EffectiveComplexity(eps=0.01, disable_warnings=True),
    "LocalLipschitzEstimate, 20 samples": lambda: LocalLipschitzEstimate(nr_samples=20, perturb_func=noisy, disable_warnings=True),
}


def noisy(arr, indices, **_):
    """The images with a little noise, which is the first image's in each call."""
    noise = np.random.default_rng(0).normal(0, 0.01, arr[:1].shape)
    return (arr + noise).astype(np.float32)


seen = {}
for name, metric in metrics.items():
    seen[name] = [scored(metric(), torch.cat([image, *others])) for others in ([], [10 * torch.rand_like(image)], [1000 * torch.rand_like(image)])]
    print(f"seen: {name}: alone {seen[name][0]:.4g}, beside one 10 times as large {seen[name][1]:.4g}, 1000 times {seen[name][2]:.4g}")
complexity, lipschitz = seen.values()
raise SystemExit(not (complexity[0] > 40 and complexity[2] == 0 and lipschitz[0] > 5 * lipschitz[1] > 100 * lipschitz[2]))
PY
