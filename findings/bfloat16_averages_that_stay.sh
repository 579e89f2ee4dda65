#!/usr/bin/env bash
# Averages with 0.999 in bfloat16: Adam's squares of gradients never fall, so one large gradient makes all later steps small; an EMA of weights never moves.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0
"$python" -W ignore - <<'PY'
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

STEPS, SMALL = 5000, 2.0**-10
ways = {"a loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
print(f"torch {torch.__version__}, {STEPS} steps; bfloat16 keeps 8 bits, so a number of it is off by up to 0.4 %")
print("expected: that much from float32: Adam forgets one gradient of 1 before gradients of 2^-10, and an average of weights that went from 1 to 2 comes to 2")
seen = {}
for dtype in (torch.float32, torch.bfloat16):
    for name, way in ways.items():
        weight = nn.Parameter(torch.zeros(8, dtype=dtype))
        adam = torch.optim.Adam([weight], lr=1e-3, **way)
        for step in range(STEPS):
            weight.grad = torch.full_like(weight, SMALL if step else 1.0)
            nn.init.zeros_(weight)
            adam.step()
        seen[dtype, name] = -weight[0].item(), adam.state[weight]["exp_avg_sq"][0].item()
    model = nn.Linear(4, 4, bias=False, dtype=dtype)
    nn.init.ones_(model.weight)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    average.update_parameters(model)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(STEPS):
        average.update_parameters(model)
    seen[dtype, "EMA"] = average.module.weight[0, 0].item()
    kind = str(dtype).removeprefix("torch.")
    for name in ways:
        last, squares = seen[dtype, name]
        print(f"seen: {kind}: Adam, {name}: exp_avg_sq is {squares:.1e} at the end, where the first gradient alone gave 1e-3; the last step is {last:.1e}")
    print(f"seen: {kind}: the EMA of weights is {seen[dtype, 'EMA']:.3f}")
half, single = torch.bfloat16, torch.float32
slow = all(seen[half, name][0] < 4e-5 < 3e-4 < seen[single, name][0] and seen[half, name][1] > 9e-4 > 1e-4 > seen[single, name][1] for name in ways)
raise SystemExit(not (slow and seen[half, "EMA"] == 1.0 and seen[single, "EMA"] > 1.99))
PY
