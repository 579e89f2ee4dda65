#!/usr/bin/env bash
# Optimizer.load_state_dict keeps the tensors that it is given: a twin that starts from another optimizer's state changes that one's moments.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0
"$python" -W ignore - <<'PY'
import copy

import torch
from torch import nn

torch.set_num_threads(1)
STEPS = 10
print(f"torch {torch.__version__}\nexpected: as with nn.Module.load_state_dict, the values are taken: of two equal runs, one after the other, each gives the weights of a run alone")


def branch(kind, options, lr, take):
    """How far the second of two continuations is from one alone, the other's learning rate being `lr`."""

    def run(model, optimizer):
        for _ in range(STEPS):
            optimizer.zero_grad()
            (model.weight - torch.arange(8.0)).pow(2).sum().backward()
            optimizer.step()

    def twin(lr):
        model = nn.Linear(8, 1, bias=False)
        model.load_state_dict(first.state_dict())
        optimizer = kind(model.parameters(), lr=0.05, **options)
        optimizer.load_state_dict(take(state))
        optimizer.param_groups[0]["lr"] = lr
        return model, optimizer

    first = nn.Linear(8, 1, bias=False)
    nn.init.zeros_(first.weight)
    optimizer = kind(first.parameters(), lr=0.05, **options)
    run(first, optimizer)
    state = optimizer.state_dict()
    alone, alone_optimizer = twin(0.05)
    alone_optimizer.load_state_dict(copy.deepcopy(state))
    run(alone, alone_optimizer)
    one, other = twin(lr), twin(0.05)
    run(*one)
    run(*other)
    step = next((int(s["step"]) for s in other[1].state.values() if "step" in s), None)
    return ((other[0].weight - alone.weight).norm() / alone.weight.norm()).item(), step


seen = {}
for kind, options in ((torch.optim.Adam, {}), (torch.optim.SGD, {"momentum": 0.9})):
    for name, take in (("the state dict", lambda state: state), ("a deep copy of it", copy.deepcopy)):
        off, step = seen[kind.__name__, name] = branch(kind, options, 0.2, take)
        counted = "" if step is None else f", its step is {step}"
        print(f"seen: {kind.__name__}: {STEPS} steps, and {STEPS} more by each of two that loaded {name}: the second is {off:.1%} off{counted}")
shared = [off > 0.001 for (_, name), (off, _) in seen.items() if name == "the state dict"]
copied = [off for (_, name), (off, _) in seen.items() if name != "the state dict"]
steps = [step for _, step in seen.values()]
raise SystemExit(not (all(shared) and copied == [0, 0] and steps == [3 * STEPS, 2 * STEPS, None, None]))
PY
