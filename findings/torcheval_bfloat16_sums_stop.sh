#!/usr/bin/env bash
# torcheval's MeanSquaredError and R2Score of many batches: states take the first batch's bfloat16, its sums stop growing, and the count does not: the error falls with every batch, R2 rises.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 torcheval==0.0.7
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from torcheval import metrics

torch.set_num_threads(1)
ROWS, WIDTH, BATCHES, MEAN = 64, 16, 4096, 4.0
print(f"torcheval {version('torcheval')}, torch {torch.__version__}; {BATCHES} batches of {ROWS} rows")
print("expected: that of all rows, within what bfloat16 rounds, 0.4 %, as a row of one dimension has it: the error is 1, R2 is 0.5")


def streamed(kind, dtype, width):
    """The metric after a quarter of the batches and after all of them; the targets have mean 4 and variance 2, the errors 1."""
    torch.manual_seed(0)
    target = torch.randn(ROWS, width) * 2**0.5
    error = torch.randn(ROWS, width)
    target, error = ((x - x.mean(0)) / x.std(0, correction=0) for x in (target, error))
    target = (MEAN + 2**0.5 * target).to(dtype)
    predicted = target + error.to(dtype)
    if width == 1:
        target, predicted = target[:, 0], predicted[:, 0]
    metric, results = kind(), []
    for batch in range(1, BATCHES + 1):
        metric.update(predicted, target)
        if batch in (16, BATCHES // 4, BATCHES):
            results.append(metric.compute().item())
    return results


seen = {}
for kind in (metrics.MeanSquaredError, metrics.R2Score):
    for dtype in (torch.float32, torch.bfloat16):
        for width in (1, WIDTH):
            found = seen[kind.__name__, dtype, width] = streamed(kind, dtype, width)
            shape = f"({ROWS}, {width})" if width > 1 else f"({ROWS},)"
            print(f"seen: {kind.__name__}, {dtype}, batches of {shape}: {', '.join(f'{x:.3f}' for x in found)} after 16, {BATCHES // 4} and all batches")
right = all(
    abs(value - (1 if name == "MeanSquaredError" else 0.5)) < 0.05
    for (name, dtype, width), found in seen.items()
    if dtype == torch.float32 or width == 1
    for value in found
)
error, score = seen["MeanSquaredError", torch.bfloat16, WIDTH], seen["R2Score", torch.bfloat16, WIDTH]
raise SystemExit(not (right and error[0] > 0.9 and error[1] < 0.6 and error[2] < 0.15 and score[2] > 0.8))
PY
