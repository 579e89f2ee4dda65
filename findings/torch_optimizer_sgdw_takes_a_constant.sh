#!/usr/bin/env bash
# torch-optimizer's SGDW: weight decay takes lr * weight_decay off every weight, whatever it is, so negative weights and zeros grow away from 0.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 torch-optimizer==0.3.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
import torch_optimizer

STEPS, LR, DECAY = 100, 0.1, 0.05
start = [2.0, 0.5, 0.0, -0.5, -2.0]
print(f"torch-optimizer {version('torch-optimizer')}, {STEPS} steps without a gradient, lr={LR}, weight_decay={DECAY}")
right = torch.tensor(start) * (1 - LR * DECAY) ** STEPS
print(f"expected: {[round(w, 3) for w in right.tolist()]}, each weight times (1 - lr * weight_decay) a step")
kinds = {"torch.optim.SGD": torch.optim.SGD, "torch_optimizer.AdaMod": torch_optimizer.AdaMod, "torch_optimizer.SGDW": torch_optimizer.SGDW}
seen = {}
for name, kind in kinds.items():
    weight = torch.nn.Parameter(torch.tensor(start))
    optimizer = kind([weight], lr=LR, weight_decay=DECAY)
    for _ in range(STEPS):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    seen[name] = weight.detach()
    print(f"seen: {name}: {[round(w, 3) for w in seen[name].tolist()]}")
constant = torch.allclose(seen.pop("torch_optimizer.SGDW"), torch.tensor(start) - STEPS * LR * DECAY, atol=1e-4)
raise SystemExit(not (constant and all(torch.allclose(weight, right, atol=1e-4) for weight in seen.values())))
PY
