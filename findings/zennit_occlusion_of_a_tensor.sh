#!/usr/bin/env bash
# zennit's Occlusion given a tensor as attr_output, as its documentation has it and Gradient takes it: the model's output is not looked at, and every model gets the same attributions.
set -euo pipefail
source "$(dirname "$0")/environment_zennit.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from torch import nn
from zennit.attribution import Gradient, Occlusion

SIDE, WINDOW, CLASS = 16, 8, 1
wanted = torch.eye(3)[[CLASS]]
torch.manual_seed(0)
images = torch.rand(1, 1, SIDE, SIDE)
print(f"zennit {version('zennit')}: class {CLASS} of three, asked for by a tensor with a 1 at it and by a function that multiplies by it")
print("expected: both are the same, as in Gradient, and depend on the model")
same, spread, models = {}, {}, [nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 3)).eval() for _ in range(2)]
for name, kind, how, ask in (
    ("Gradient", Gradient, {}, lambda output: wanted),
    ("Occlusion", Occlusion, {"window": WINDOW, "stride": WINDOW}, lambda output: output * wanted),
):
    for i, model in enumerate(models):
        attributions = []
        for asked in (wanted, ask):
            with kind(model, **how) as attributor:
                attributions.append(attributor(images, asked)[1].detach())
        by_tensor, by_function = attributions
        same[name, i], spread[name, i] = torch.allclose(by_tensor, by_function), float(by_tensor.std())
        corners = [[f"{float(by[0, 0, y, x]):.3f}" for y in (0, -1) for x in (0, -1)] for by in attributions]
        print(f"seen: {name}, model {i}: by a tensor, at the four corners {', '.join(corners[0])}; by a function {', '.join(corners[1])}")
fine = all(same["Gradient", i] and spread["Gradient", i] > 0 for i in range(2))
raise SystemExit(not (fine and not any(same["Occlusion", i] or spread["Occlusion", i] for i in range(2))))
PY
