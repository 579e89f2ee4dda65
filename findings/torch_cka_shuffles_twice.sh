#!/usr/bin/env bash
# torch-cka's compare with a loader that shuffles: it is read twice, in two orders, so the two models get other examples, and a model and its copy have a CKA of 0.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 torch_cka==0.21 tqdm==4.70.1 matplotlib==3.11.2 numpy==2.4.6
"$python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
from torch.utils.data import DataLoader, TensorDataset
from torch_cka import CKA

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 16))
twin = copy.deepcopy(model)
rows = TensorDataset(torch.randn(512, 16), torch.zeros(512))
seen = {}
for shuffle in False, True:
    cka = CKA(model, twin, "model", "copy", model1_layers=["0"], model2_layers=["0"])
    cka.compare(DataLoader(rows, 64, shuffle=shuffle, generator=torch.Generator().manual_seed(0)))
    seen[shuffle] = cka.export()["CKA"].item()
print(f"torch-cka {version('torch_cka')}, a layer and its copy on one loader\nexpected: a CKA of 1, in whatever order the rows come")
print(f"seen: {seen[False]:.4f} with shuffle=False, {seen[True]:.4f} with shuffle=True and a seeded generator")
raise SystemExit(not (abs(seen[False] - 1) < 1e-3 and abs(seen[True]) < 0.1))
PY
