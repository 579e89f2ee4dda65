#!/usr/bin/env bash
# torchao's Float8WeightOnlyConfig: a row of zeros, as a pruned neuron or a dead latent has, is divided by its own maximum, so its output is NaN.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 torchao==0.18.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from torch import nn
from torchao import quantization

DEAD = 3
torch.set_num_threads(1)
x = torch.randn(10, 64)
print(f"torchao {version('torchao')}, torch {torch.__version__}\nexpected: the output of a row of zeros is its bias, as without quantization")
seen = {}
for name in ("Int8WeightOnlyConfig", "IntxWeightOnlyConfig", "Float8WeightOnlyConfig"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    with torch.no_grad():
        model[0].weight[DEAD] = 0
        before = model(x)
        quantization.quantize_(model, getattr(quantization, name)())
        hidden, after = model[0](x), model(x)
        weight = model[0].weight.dequantize()
    off = (after - before).norm() / before.norm()
    seen[name] = [rows.nonzero().flatten().tolist() for rows in (hidden.isnan().all(0), weight.isnan().all(1))] + [bool(after.isnan().all())]
    print(f"seen: {name}: hidden units that are NaN {seen[name][0]}, rows of the weight {seen[name][1]}; all outputs NaN {seen[name][2]}; off by {off:.1%}")
fine, broken = [[], [], False], [[DEAD], [DEAD], True]
raise SystemExit(list(seen.values()) != [fine, fine, broken])
PY
