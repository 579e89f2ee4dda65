#!/usr/bin/env bash
# autocast keeps the weights as they were first cast: one edited or trained inside the block goes on acting as before, until the block ends.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0
"$python" -W ignore - <<'PY'
import torch
from torch import nn

torch.manual_seed(0)
x = torch.randn(64, 16)
print(f"torch {torch.__version__}, autocast to bfloat16 on a CPU\nexpected: a weight that was set to zero gives zeros, and a model that is trained gets better")
seen = {}
for name, options in {"no autocast": {"enabled": False}, "autocast": {}, "autocast, cache_enabled=False": {"cache_enabled": False}}.items():
    layer, trained = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.05)
    with torch.autocast("cpu", torch.bfloat16, **options):
        layer(x)
        with torch.no_grad():
            layer.weight.zero_()
        ablated = layer(x).float().norm().item()
        losses = []
        for _ in range(50):
            optimizer.zero_grad()
            loss = (trained(x) - x).pow(2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    outside = (trained(x) - x).pow(2).mean().item()
    seen[name] = ablated == 0, losses[-1] < losses[0], outside
    print(f"seen: {name}: norm of the output of a zero weight {ablated:.2f}; loss of the first and the 50th step {losses[0]:.3f} and {losses[-1]:.3f}, after the block {outside:.3f}")
raise SystemExit([value[:2] for value in seen.values()] != [(True, True), (False, False), (True, True)])
PY
