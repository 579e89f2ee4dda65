#!/usr/bin/env bash
# tdhook's IntegratedGradients by default leaves out input less baseline: they are mean gradients, and its convergence_delta holds their sum against the outputs' difference all the same, so it is no error of convergence.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 tensordict==0.15.3 captum==0.9.0 tdhook==0.3.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from captum.attr import IntegratedGradients as Reference
from tdhook.attribution import IntegratedGradients
from tensordict import TensorDict
from torch import nn

WIDTH = 4
model = nn.Linear(WIDTH, 1)
with torch.no_grad():
    model.weight.copy_(torch.tensor([[1.0, -2.0, 3.0, 0.5]]))
row, baseline = torch.tensor([[2.0, 1.0, 0.0, -4.0]]), torch.zeros(1, WIDTH)


def shown(numbers):
    return "[" + ", ".join(f"{float(x):.2f}" for x in numbers) + "]"


def attributed(steps, **options):
    """Attributions, and how far they are from summing to what the output changes."""
    data = TensorDict({"input": row, ("baseline", "input"): baseline}, batch_size=[1])
    with IntegratedGradients(n_steps=steps, compute_convergence_delta=True, **options).prepare(model) as hooked:
        result = hooked(data)
    return result["attr", "input"][0].detach(), float(result["convergence_delta"])


right, delta = Reference(model).attribute(row, baselines=baseline, return_convergence_delta=True)
print(f"tdhook {version('tdhook')}: a linear model with weights {shown(model.weight[0])}, the row {shown(row[0])}, the baseline 0, between which the output changes by {float(model(row) - model(baseline)):g}")
print(f"expected: integrated gradients of Sundararajan et al., {shown(right[0])} by captum, whose sum is that change; the delta is 0, and smaller with more steps in other models")
seen = {}
for steps in (50, 5_000):
    for name, options in {"by default": {}, "with multiply_by_inputs=True": {"multiply_by_inputs": True}}.items():
        seen[name], off = by = attributed(steps, **options)
        print(f"seen: {name}, {steps} steps: {shown(by[0])}, convergence_delta {off:.3f}")
        seen[name, steps] = off
weights = torch.allclose(seen["by default"], model.weight[0], atol=1e-3)
same = torch.allclose(seen["with multiply_by_inputs=True"], right[0].float(), atol=1e-3)
deltas = all(abs(seen["by default", s]) > 1 > 1e-2 > abs(seen["with multiply_by_inputs=True", s]) for s in (50, 5_000))
raise SystemExit(not (weights and same and deltas))
PY
