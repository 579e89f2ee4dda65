#!/usr/bin/env bash
# bitsandbytes' Adam8bit beside large gradients: Adam's step does not depend on a gradient's size, but here 10,000 times smaller ones hardly move their weights.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 bitsandbytes==0.50.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from bitsandbytes.optim import Adam, Adam8bit, AdamW8bit, RMSprop8bit
from torch import nn

ROWS, WIDTH, STEPS, RATE = 64, 256, 300, 1e-3
print(f"bitsandbytes {version('bitsandbytes')}, a weight of {ROWS} x {WIDTH}, {STEPS} steps of {RATE}; the gradient is 1 in the first column, as of a massive activation, and small in others")
print(f"expected: {STEPS * RATE} for every column, whatever its gradient, and with 8 bits about as much")
seen = {}
for small in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
    moved = {}
    for name, optimizer in (("torch's Adam", torch.optim.Adam), ("Adam", Adam), ("Adam8bit", Adam8bit), ("AdamW8bit", AdamW8bit), ("RMSprop8bit", RMSprop8bit)):
        weight = nn.Parameter(torch.zeros(ROWS, WIDTH))
        stepping = optimizer([weight], lr=RATE)
        for _ in range(STEPS):
            weight.grad = torch.full((ROWS, WIDTH), small)
            weight.grad[:, 0] = 1
            stepping.step()
        moved[name] = -weight[:, 0].mean().item(), -weight[:, 1:].mean().item()
    seen[small] = moved
    print(f"seen: small gradients of {small}: " + ", ".join(f"{name} {few:.4f} (first column {large:.2f})" for name, (large, few) in moved.items()))
whole = all(abs(few - STEPS * RATE) < 0.01 for moved in seen.values() for name, (_, few) in moved.items() if name in ("torch's Adam", "Adam"))
near = all(abs(seen[small]["Adam8bit"][1] - STEPS * RATE) < 0.03 for small in (1e-1, 1e-2))
stuck = all(seen[small][name][1] < STEPS * RATE / 10 < 0.2 < seen[small][name][0] for small in (1e-4, 1e-5) for name in ("Adam8bit", "AdamW8bit"))
raise SystemExit(not (whole and near and stuck))
PY
