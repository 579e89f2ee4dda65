#!/usr/bin/env bash
# nanmean of float16, torch's and numpy's, and torch.masked.mean divide a sum of float16: 4,096 numbers of 100 have an infinite mean; mean has 100.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6
"$python" -W ignore - <<'PY'
import numpy as np
import torch

TOKENS = 4096
acts = torch.full((TOKENS, 2), 100.0, dtype=torch.float16)
holes = acts.clone()
holes[::2, 0] = torch.nan
there = ~holes.isnan()
print(f"torch {torch.__version__}, {TOKENS:,} activations of 100\nexpected: the mean is 100, with and without NaN, as mean's")
seen = {
    "mean": acts.mean(0),
    "nanmean without NaN": acts.nanmean(0),
    "nanmean, half of the first column NaN": holes.nanmean(0),
    "masked.mean, no mask": torch.masked.mean(acts, 0),
    "masked.mean of what is not NaN": torch.masked.mean(holes, 0, mask=there),
    "masked.var of it": torch.masked.var(holes, 0, unbiased=False, mask=there),
    "numpy's mean": torch.from_numpy(acts.numpy().mean(0)),
    "numpy's nanmean": torch.from_numpy(np.nanmean(holes.numpy(), 0)),
}
for name, value in seen.items():
    print(f"seen: {name}: {value.tolist()}")
right = {name for name, value in seen.items() if value.tolist() == [100, 100]}
infinite = {name for name, value in seen.items() if value.isinf().all()}
raise SystemExit(not (right == {"mean", "numpy's mean"} and right | infinite == set(seen)))
PY
