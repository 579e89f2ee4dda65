#!/usr/bin/env bash
# torch-cka's compare of one model on two data sets, as clean and corrupted inputs: each run fills both sides, so the second set is compared with itself and each layer has 1.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 torch_cka==0.21 tqdm==4.70.1 matplotlib==3.11.2 numpy==2.4.6
"$python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
from torch.utils.data import DataLoader, TensorDataset
from torch_cka import CKA

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
twin = copy.deepcopy(model)
clean = torch.randn(512, 16)
corrupted = clean + torch.randn(512, 16)
loaders = [DataLoader(TensorDataset(rows, torch.zeros(512)), 64) for rows in (clean, corrupted)]
print(f"torch-cka {version('torch_cka')}, layer 2 on clean and on corrupted inputs\nexpected: less than 1, and the same whether the second model is the first or its copy")
seen = {}
for name, second in ("copy", twin), ("model", model):
    cka = CKA(model, second, "clean", "corrupted", model1_layers=["2"], model2_layers=["2"])
    cka.compare(*loaders)
    seen[name] = cka.export()["CKA"].item()
    print(f"seen: {seen[name]:.4f} with the {'model itself' if second is model else 'copy'}")
raise SystemExit(not (seen["copy"] < 0.9 and abs(seen["model"] - 1) < 1e-4))
PY
