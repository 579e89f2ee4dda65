#!/usr/bin/env bash
# torchao's linear layers with int8 activations pass no gradient to their input, without an error: of a residual block only the skip's gradient is left.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 torchao==0.18.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from torch import nn
from torchao import quantization

torch.set_num_threads(1)
torch.manual_seed(0)
x, direction = torch.randn(10, 64), torch.randn(64)
block = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
print(f"torchao {version('torchao')}, torch {torch.__version__}\nexpected: an attribution, the gradient of a direction of x + block(x), as without quantization, or an error")


def attribution(model):
    given = x.clone().requires_grad_()
    output = given + model(given)
    (output @ direction).sum().backward()
    return output.detach(), given.grad


plain, gradient = attribution(block)
seen = {}
for name in ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"):
    model = nn.Sequential(*(nn.Linear(each.in_features, each.out_features) if isinstance(each, nn.Linear) else nn.ReLU() for each in block))
    model.load_state_dict(block.state_dict())
    quantization.quantize_(model, getattr(quantization, name)())
    output, given = attribution(model)
    off = [((one - other).norm() / other.norm()).item() for one, other in ((output, plain), (given, gradient))]
    seen[name] = off[0] < 0.05, off[1] < 0.05, torch.equal(given, direction.expand(10, 64))
    print(f"seen: {name}: outputs are {off[0]:.1%} off, gradients {off[1]:.0%}; the gradient is that of x alone {seen[name][2]}")
raise SystemExit(list(seen.values()) != [(True, True, False), (True, False, True)])
PY
