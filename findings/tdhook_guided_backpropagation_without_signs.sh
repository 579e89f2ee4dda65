#!/usr/bin/env bash
# tdhook's GuidedBackpropagation takes negative gradients off at the input of every module, linear ones too, and not at ReLUs alone: no input has a negative attribution, not even of a linear model.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 tensordict==0.15.3 captum==0.9.0 tdhook==0.3.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from captum.attr import GuidedBackprop
from tdhook.attribution import GuidedBackpropagation
from tensordict import TensorDict
from torch import nn

WIDTH, ROWS = 6, 64
torch.manual_seed(0)
MODELS = {
    "a linear model": nn.Sequential(nn.Linear(WIDTH, 1)),
    "two layers with ReLU": nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 1)),
    "three layers with ReLU": nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)),
}
inputs = torch.randn(ROWS, WIDTH)


def shown(numbers):
    return "[" + ", ".join(f"{float(x):.3f}" for x in numbers) + "]"


def attributed(model, **options):
    with GuidedBackpropagation(**options).prepare(model) as hooked:
        return hooked(TensorDict({"input": inputs}, batch_size=[ROWS]))["attr", "input"]


print(f"tdhook {version('tdhook')}: guided backpropagation of Springenberg et al., beside captum {version('captum')}'s")
print("expected: negative gradients are taken off where they pass back through a ReLU; what a linear layer passes on keeps its sign, so of a linear model attributions are the weights")
seen = []
for name, model in MODELS.items():
    right, default, skipped = GuidedBackprop(model).attribute(inputs), attributed(model), attributed(model, classes_to_skip=(nn.Linear, nn.Sequential))
    seen.append((float((right < 0).float().mean()), float((default < 0).float().mean()), torch.allclose(right, skipped, atol=1e-6)))
    print(f"seen: {name}, first row: {shown(default[0])}; captum {shown(right[0])}")
    print(f"seen: {name}: {seen[-1][1]:.0%} of attributions are negative, of captum's {seen[-1][0]:.0%}; with Linear and Sequential in classes_to_skip {'they are those' if seen[-1][2] else 'they are others'}")
raise SystemExit(not all(right > 0.2 and default == 0 and same for right, default, same in seen))
PY
