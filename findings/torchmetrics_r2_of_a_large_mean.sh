#!/usr/bin/env bash
# torchmetrics' R2Score and ExplainedVariance, torcheval's R2Score: the variance is a difference of sums in the targets' dtype, so in bfloat16 a dimension with a mean of 30 spreads scores above 1, and not 0.75.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0 torcheval==0.0.7 scikit-learn==1.9.1
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
import torcheval.metrics
import torchmetrics
from sklearn.metrics import r2_score

torch.set_num_threads(1)
BATCHES, ROWS, MEANS = 64, 1024, (0.0, 10.0, 30.0, 10_000.0)
torch.manual_seed(0)
target = torch.randn(BATCHES * ROWS, len(MEANS)) + torch.tensor(MEANS)
predicted = target + torch.randn_like(target) / 2
print(f"torchmetrics {torchmetrics.__version__}, torcheval {version('torcheval')}, torch {torch.__version__}; dimensions of variance 1, errors of 0.25")
print(f"expected: scikit-learn's R2 of the same numbers in float64, in each dimension\nseen: means are {', '.join(f'{x:g}' for x in MEANS)}")
seen = {}
for dtype in (torch.float32, torch.bfloat16):
    t, p = target.to(dtype), predicted.to(dtype)
    exact = torch.tensor(r2_score(t.double(), p.double(), multioutput="raw_values"))
    print(f"seen: {dtype}: scikit-learn {', '.join(f'{x:.3f}' for x in exact.tolist())}")
    ways = {
        "torchmetrics' R2Score": torchmetrics.R2Score(multioutput="raw_values"),
        "torchmetrics' ExplainedVariance": torchmetrics.ExplainedVariance(multioutput="raw_values"),
        "torcheval's R2Score": torcheval.metrics.R2Score(multioutput="raw_values"),
    }
    for name, metric in ways.items():
        for first in range(0, len(t), ROWS):
            rows = slice(first, first + ROWS)
            metric.update(p[rows], t[rows])
        found = metric.compute()
        print(f"seen: {dtype}: {name} {', '.join(f'{x:.3f}' for x in found.tolist())}")
        seen[dtype, name] = (found - exact).abs()
single, half = torch.float32, torch.bfloat16
right = all(off[0] < 0.01 for off in seen.values()) and all(off[:3].max() < 0.01 for (dtype, _), off in seen.items() if dtype == single)
wrong = all(off[1] > 0.05 and off[2] > 0.2 for (dtype, _), off in seen.items() if dtype == half)
raise SystemExit(not (right and wrong and all(off[3] > 0.1 for (dtype, _), off in seen.items() if dtype == single)))
PY
