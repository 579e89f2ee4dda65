#!/usr/bin/env bash
# bitsandbytes: LAMB8bit and LARS8bit step as Adam8bit and SGD8bit do, without a trust ratio; Adam with weight_decay is AdamW, in 32 and 8 bits.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 bitsandbytes==0.50.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from bitsandbytes import optim
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
start, slope = 0.01 * torch.randn(64, 128), torch.randn(64, 128)


def stepped(make, gradient, lr=0.1, steps=3, **options):
    weight = nn.Parameter(start.clone())
    optimizer = make([weight], lr=lr, **options)
    for _ in range(steps):
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


print(f"bitsandbytes {version('bitsandbytes')}\nexpected: LAMB and LARS step in proportion to the weight's norm, in 8 bits as in 32")
seen = {}
for layerwise, plain, options in (("LAMB", "Adam", {}), ("LARS", "SGD", {"momentum": 0.9})):
    for bits in ("", "8bit"):
        one, other = (stepped(getattr(optim, name + bits), slope, **options) for name in (layerwise, plain))
        seen[layerwise + bits] = torch.equal(one, other)
        far, plain_far = ((weight - start).norm() / start.norm() for weight in (one, other))
        print(f"seen: {layerwise}{bits}, three steps, lr 0.1: the weight of norm 1 moved by {far:.2f}, with {plain}{bits} by {plain_far:.2f}")
print("expected: Adam with weight_decay adds it to the gradient, as torch's does, and AdamW shrinks the weights")
torchs = {name: stepped(getattr(torch.optim, name), slope, lr=0.01, steps=20, weight_decay=1.0) for name in ("Adam", "AdamW")}
for name in ("Adam", "AdamW", "Adam8bit", "AdamW8bit"):
    weight = stepped(getattr(optim, name), slope, lr=0.01, steps=20, weight_decay=1.0)
    off = {kind: ((weight - other).norm() / other.norm()).item() for kind, other in torchs.items()}
    seen[name] = off["AdamW"] < 0.1 < 0.15 < off["Adam"]
    print(f"seen: {name}, 20 steps, weight_decay 1: " + ", ".join(f"{value:.1%} from torch's {kind}" for kind, value in off.items()))
raise SystemExit(seen != {"LAMB": False, "LAMB8bit": True, "LARS": False, "LARS8bit": True, **dict.fromkeys(("Adam", "AdamW", "Adam8bit", "AdamW8bit"), True)})
PY
