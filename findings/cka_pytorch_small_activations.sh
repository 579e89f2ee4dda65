#!/usr/bin/env bash
# cka_pytorch adds 1e-4, by its docstring to the denominator, to the product of two HSIC under the root: CKA, which does not depend on scale, falls to 0 where activations are as small as token embeddings are.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 lightning==2.6.6 torchmetrics==1.9.0 matplotlib==3.11.2 seaborn==0.13.2 tqdm==4.70.1
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps cka_pytorch==1.1.3; fi
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from cka_pytorch import CKACalculator
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
embeddings = torch.randn(256, 512)
model = torch.nn.Sequential(torch.nn.Identity())
model.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
print(f"cka_pytorch {version('cka_pytorch')}, a layer of 512 dimensions with itself\nexpected: a CKA of 1, whatever the scale")
seen = {}
for scale in 1.0, 0.1, 0.02, 0.01:
    cka = CKACalculator(model, model, ["0"], verbose=False)
    loader = DataLoader(TensorDataset(embeddings * scale, torch.zeros(256)), 64)
    seen[scale] = cka.calculate_cka_matrix(loader, num_epochs=1).item()
    print(f"seen: {seen[scale]:.4f} for activations with a standard deviation of {scale}")
raise SystemExit(not (seen[1.0] > 0.999 and seen[0.02] < 0.2 and seen[0.01] < 0.05))
PY
