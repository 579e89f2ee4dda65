#!/usr/bin/env bash
# Prodigy and D-Adaptation: 0 is the one other lr that they let a group have, but a layer whose lr falls to 0 goes on by its last momentum, and DAdaptLion trains it as the others.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 prodigyopt==1.1.2 dadaptation==3.2
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import dadaptation
import prodigyopt
import torch
from torch import nn

STEPS = 100
torch.set_num_threads(1)
print(f"prodigyopt {version('prodigyopt')}, dadaptation {version('dadaptation')}, torch {torch.__version__}")
print("expected: a group with lr=0 stays as it is, as with torch's Adam; their error for any other lr says that values of 0 are supported")


def moved(kind, options, first_lr, later_lr):
    """How far the first layer moves in the first steps and in the later ones, and the loss after each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    x = torch.randn(256, 8)
    y = x @ torch.randn(8, 8)
    groups = [{"params": list(model[0].parameters()), "lr": first_lr}, {"params": list(model[2].parameters())}]
    optimizer, results = kind(groups, **options), []
    for lr in (first_lr, later_lr):
        optimizer.param_groups[0]["lr"] = lr
        before = model[0].weight.detach().clone()
        for _ in range(STEPS):
            optimizer.zero_grad()
            (model(x) - y).pow(2).mean().backward()
            optimizer.step()
        results.append((model[0].weight.detach() - before).norm().item())
    return results, (model(x) - y).pow(2).mean().item()


ways = {
    "torch's Adam": (torch.optim.Adam, {"lr": 0.05}),
    "Prodigy": (prodigyopt.Prodigy, {"lr": 1.0}),
    "Prodigy, beta1=0": (prodigyopt.Prodigy, {"lr": 1.0, "betas": (0.0, 0.999)}),
    "DAdaptAdam": (dadaptation.DAdaptAdam, {"lr": 1.0}),
    "DAdaptLion": (dadaptation.DAdaptLion, {"lr": 1.0}),
}
frozen, stopped = {}, {}
for name, (kind, options) in ways.items():
    lr = options["lr"]
    (_, going), loss_going = moved(kind, options, lr, lr)
    (_, stopped[name]), loss_stopped = moved(kind, options, lr, 0.0)
    (frozen[name], _), _ = moved(kind, options, 0.0, 0.0)
    print(
        f"seen: {name}: the first layer's weight moves by {stopped[name]:.2f} in the {STEPS} steps after its lr fell to 0 (loss {loss_stopped:.2f}),"
        f" by {going:.2f} if it does not fall (loss {loss_going:.2f}), and by {frozen[name]:.2f} if lr is 0 from the beginning"
    )
right = stopped["torch's Adam"] == frozen["torch's Adam"] == frozen["Prodigy"] == frozen["DAdaptAdam"] == 0
wrong = min(value for name, value in stopped.items() if name != "torch's Adam") > 0.1
raise SystemExit(not (right and wrong and frozen["DAdaptLion"] > 1 and frozen["Prodigy, beta1=0"] > 1000))
PY
