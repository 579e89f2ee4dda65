#!/usr/bin/env bash
# schedulefree's AdamW, pytorch-optimizer's Ranger, LARS, NovoGrad and GrokFastAdamW work in p.grad: a gradient norm that is logged after step() is not the gradient's, and of schedulefree does not depend on its size.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 schedulefree==1.4.1 pytorch_optimizer==4.1.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import pytorch_optimizer
import schedulefree
import torch

torch.set_num_threads(1)
print(f"torch {torch.__version__}, schedulefree {version('schedulefree')}, pytorch-optimizer {version('pytorch_optimizer')}")
print("expected: step() changes weights and the optimizer's state; p.grad stays the gradient until it is zeroed")
kinds = {
    "torch.optim.AdamW": torch.optim.AdamW,
    "torch.optim.SGD": torch.optim.SGD,
    "pytorch_optimizer.AdaBelief": pytorch_optimizer.AdaBelief,
    "schedulefree.AdamWScheduleFree": schedulefree.AdamWScheduleFree,
    "pytorch_optimizer.Ranger": pytorch_optimizer.Ranger,
    "pytorch_optimizer.NovoGrad": pytorch_optimizer.NovoGrad,
    "pytorch_optimizer.LARS": pytorch_optimizer.LARS,
    "pytorch_optimizer.GrokFastAdamW": pytorch_optimizer.GrokFastAdamW,
}
generator = torch.Generator().manual_seed(0)
start, gradient = torch.randn(64, 32, generator=generator), torch.randn(64, 32, generator=generator) + 1


def norm_after_step(kind, scale):
    weight = torch.nn.Parameter(start.clone())
    optimizer = kind([weight], lr=1e-3, weight_decay=0.01)
    if hasattr(optimizer, "train"):
        optimizer.train()
    weight.grad = gradient * scale
    optimizer.step()
    return weight.grad.norm().item() / (gradient.norm().item() * scale)


seen = {}
for name, kind in kinds.items():
    seen[name] = norm_after_step(kind, 1.0), norm_after_step(kind, 1e-3)
    print(f"seen: {name}: after step() the norm of p.grad is {seen[name][0]:.3f} times the gradient's, {seen[name][1]:.3f} times that of a gradient 1,000 times smaller")
kept = ("torch.optim.AdamW", "torch.optim.SGD", "pytorch_optimizer.AdaBelief")
right = all(abs(ratio - 1) < 1e-5 for name in kept for ratio in seen[name])
written = all(max(abs(ratio - 1) for ratio in ratios) > 0.1 for name, ratios in seen.items() if name not in kept)
raise SystemExit(not (right and written and seen["schedulefree.AdamWScheduleFree"][1] > 500))
PY
