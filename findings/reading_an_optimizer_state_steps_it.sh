#!/usr/bin/env bash
# get_optimizer_state_dict of an optimizer that has made no step makes one with zeros: a checkpoint before the first step changes how training goes on.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0
"$python" -W ignore - <<'PY'
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

STEPS = 3
optimizers = {"Adam": {}, "AdamW": {}, "NAdam": {}, "RAdam": {}, "Adamax": {}, "Rprop": {}, "ASGD": {}, "Adafactor": {}, "SGD": {"momentum": 0.9, "dampening": 0.5}, "Adagrad": {}, "RMSprop": {}, "Muon": {}}
optimizers["SGD, no dampening"] = {"momentum": 0.9}
print(f"torch {torch.__version__}, torch.distributed.checkpoint, one process, {STEPS} steps of lr 0.1\nexpected: reading a state leaves it as it is, as optimizer.state_dict() does")


def trained(name, options, read):
    torch.manual_seed(0)
    model = nn.Linear(8, 8, bias=False)
    start = model.weight.detach().clone()
    optimizer = getattr(torch.optim, name.split(",")[0])(model.parameters(), lr=0.1, **options)
    if read == "get_optimizer_state_dict":
        get_optimizer_state_dict(model, optimizer)
    elif read == "state_dict":
        optimizer.state_dict()
    for _ in range(STEPS):
        model.weight.grad = torch.randn(8, 8)
        optimizer.step()
    return model.weight.detach() - start


changed = set()
for name, options in optimizers.items():
    never, harmless, read = (trained(name, options, how) for how in (None, "state_dict", "get_optimizer_state_dict"))
    off = ((read - never).norm() / never.norm()).item()
    changed |= {name} if off > 1e-6 else set()
    changed |= {"state_dict"} if not torch.equal(never, harmless) else set()
    print(f"seen: {name}: with its state read before the first step, the weights' way is {off:.0%} off")
model = nn.Linear(8, 8)
adam = torch.optim.Adam(model.parameters())
get_optimizer_state_dict(model, adam)
print(f"seen: Adam's step after reading, before any step: {adam.state[model.weight]['step']:.0f}")
raise SystemExit(changed != set(optimizers) - {"Adagrad", "RMSprop", "Muon", "SGD, no dampening"})
PY
