#!/usr/bin/env bash
# heavyball's Scion: its first step throws the weights away: a matrix becomes a random orthogonal one, a bias 0, so a trained model, or layers unfrozen later, begin anew.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 heavyball==3.2.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import heavyball
import torch
from torch import nn

heavyball.utils.compile_mode = None
torch.set_num_threads(1)
print(f"heavyball {version('heavyball')}\nexpected: an optimizer starts from the weights that it is given, and with lr=0 leaves them")


def first_step(kind, lr):
    """How far one step takes the weights of a solved regression, and its error before and after."""
    torch.manual_seed(0)
    inputs, layer = torch.randn(256, 32), nn.Linear(32, 16)
    nn.init.normal_(layer.bias)
    target, before = layer(inputs).detach(), [p.detach().clone() for p in layer.parameters()]
    optimizer = kind(layer.parameters(), lr=lr)
    (layer(inputs) - target - 1e-3).pow(2).mean().backward()
    optimizer.step()
    moved = [((p - old).norm() / old.norm()).item() for p, old in zip(layer.parameters(), before, strict=True)]
    error = ((layer(inputs) - target).pow(2).mean() / target.var()).item()
    return moved, error, layer


seen = {}
for kind in (heavyball.AdamW, heavyball.Muon, heavyball.Scion):
    for lr in (0.0, 1e-4):
        moved, error, layer = first_step(kind, lr)
        seen[kind.__name__, lr] = max(moved), error
        print(f"seen: {kind.__name__}, lr={lr}: one step moves the matrix by {moved[0]:.1%}, the bias by {moved[1]:.1%}; unexplained of what was known: {error:.1%}")
        if kind is heavyball.Scion and lr == 0:
            gram = layer.weight.detach() @ layer.weight.detach().T
            anew = torch.allclose(gram, gram[0, 0] * torch.eye(16), atol=1e-4) and not layer.bias.any()
print(f"the matrix is now orthogonal and the bias 0: {anew}")
others = all(max(values) < 0.01 for (name, _), values in seen.items() if name != "Scion")
raise SystemExit(not (others and anew and all(min(values) > 0.5 for (name, _), values in seen.items() if name == "Scion")))
PY
