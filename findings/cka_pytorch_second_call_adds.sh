#!/usr/bin/env bash
# cka_pytorch's calculate_cka_matrix goes on from the sums of the call before: the matrix of a second data set is of both; reset takes the hooks away, and no call works after it.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 lightning==2.6.6 torchmetrics==1.9.0 matplotlib==3.11.2 seaborn==0.13.2 tqdm==4.70.1
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps cka_pytorch==1.1.3; fi
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from cka_pytorch import CKACalculator
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16))
rows = torch.randn(256, 16)
first, second = (DataLoader(TensorDataset(data, torch.zeros(256)), 64) for data in (rows * torch.arange(16).sqrt(), rows))
make = lambda: CKACalculator(model, model, ["0", "2"], verbose=False)
of = lambda cka, loader: cka.calculate_cka_matrix(loader, num_epochs=1)[0, 1].item()
used = make()
before, after = of(used, first), of(used, second)
fresh = of(make(), second)
both = make()
for loader in first, second:
    for batch, _ in loader:
        both._process_batch(batch)
both = both._compute_final_cka(1e-4)[0, 1].item()
used.reset()
try:
    reset = f"{of(used, second):.4f}"
except KeyError as error:
    reset = f"KeyError {error}"
print(f"cka_pytorch {version('cka_pytorch')}, one CKACalculator on two data sets\nexpected: {before:.4f}, then {fresh:.4f} as a new one has it")
print(f"seen: {before:.4f}, then {after:.4f}; of both data sets together {both:.4f}\nseen: {reset} after reset(), by its docstring for a new calculation")
raise SystemExit(not (reset.startswith("KeyError") and abs(after - both) < 1e-5 and abs(after - fresh) > 0.01))
PY
