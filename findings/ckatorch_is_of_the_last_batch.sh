#!/usr/bin/env bash
# ckatorch's CKA, by its docstring the minibatch version, writes each batch's value over the one before: the matrix is of the last batch alone.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 ckatorch==1.0.3
"$python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
from ckatorch import CKA
from ckatorch.hsic import hsic1
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
texts = torch.randn(10, 32, 16)
others = texts.clone()
others[:8] = texts[:8].pow(3) + torch.randn(8, 32, 1)


class Named(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def measured(data):
    models = (Named(copy.deepcopy(model)) for _ in range(2))
    cka = CKA(*models, ["inner.0"], ["inner.2"], first_name="model", second_name="copy")
    return cka(DataLoader(TensorDataset(data), 2), epochs=1).item()


def averaged(data):
    with torch.no_grad():
        first, last = model[0](data).double(), model(data).double()
    grams = first @ first.mT, last @ last.mT
    cross, one, two = (hsic1(grams[i], grams[j]).mean() for i, j in ((0, 1), (0, 0), (1, 1)))
    return (cross / (one * two).sqrt()).item()


seen = [measured(data) for data in (texts, others, texts[8:])]
right = [averaged(data) for data in (texts, others)]
print(f"ckatorch {version('ckatorch')}, five batches of two texts; then the same last batch after four others\nexpected: {right[0]:.4f}, then {right[1]:.4f}")
print(f"seen: {seen[0]:.4f}, then {seen[1]:.4f}; of the last batch alone {seen[2]:.4f}")
raise SystemExit(not (seen[0] == seen[1] == seen[2] and abs(right[0] - right[1]) > 0.05 and abs(right[1] - seen[1]) > 0.05))
PY
