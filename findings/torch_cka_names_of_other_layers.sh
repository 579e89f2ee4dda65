#!/usr/bin/env bash
# torch-cka names its rows in the order of named_modules and fills them in the order in which modules end: with a block and its parts, a row's name is another layer's.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 torch_cka==0.21 tqdm==4.70.1 matplotlib==3.11.2 numpy==2.4.6
"$python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
from torch.utils.data import DataLoader, TensorDataset
from torch_cka import CKA


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = torch.nn.Linear(16, 16)

    def forward(self, x):
        return x + 3 * torch.relu(self.mlp(x))


torch.manual_seed(0)
model = torch.nn.Sequential(Block(), Block())
loader = DataLoader(TensorDataset(torch.randn(512, 16), torch.zeros(512)), 64)


def compare(layers):
    cka = CKA(copy.deepcopy(model), copy.deepcopy(model), "model", "copy", model1_layers=layers, model2_layers=["0.mlp"])
    cka.compare(loader)
    result = cka.export()
    return dict(zip(result["model1_layers"], result["CKA"][:, 0].tolist()))


together, alone = compare(["0", "0.mlp", "1", "1.mlp"]), {}
for name in together:
    alone |= compare([name])
show = lambda values: ", ".join(f"{name} {value:.3f}" for name, value in values.items())
print(f"torch-cka {version('torch_cka')}, CKA of some layers with the copy's 0.mlp\nexpected: {show(alone)} (each alone)")
print(f"seen: {show(together)} (all four together)")
swapped = {"0": "0.mlp", "0.mlp": "0", "1": "1.mlp", "1.mlp": "1"}
ends = all(abs(together[name] - alone[other]) < 1e-4 for name, other in swapped.items())
raise SystemExit(not (ends and abs(together["0.mlp"] - alone["0.mlp"]) > 0.05))
PY
