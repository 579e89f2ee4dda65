#!/usr/bin/env bash
# torch.histc and torch.histogram on a CPU count in the values' dtype: a bin stops at 16,777,216 values of float32, in silence.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$python" -W ignore - <<'PY'
import numpy as np
import torch

torch.set_num_threads(1)  # each thread counts by itself, so with several the limit is so many times that
CODES, FIRES = 40_000_000, 1000
codes = torch.zeros(CODES)
codes[:FIRES] = 1.0
print(f"torch {torch.__version__}, {CODES:,} codes of a dictionary, {FIRES:,} of them 1 and the others 0")
print(f"expected: {CODES - FIRES:,} and {FIRES:,}, as numpy.histogram counts")
seen = {
    "numpy.histogram": np.histogram(codes.numpy(), 2, (0, 2))[0],
    "histc": torch.histc(codes, 2, 0, 2),
    "histogram": torch.histogram(codes, 2, range=(0.0, 2.0)).hist,
    "histogram, density=True": torch.histogram(codes, 2, range=(0.0, 2.0), density=True).hist,
    "histc of float64": torch.histc(codes.double(), 2, 0, 2),
}
for name, counts in seen.items():
    print(f"seen: {name}: " + " and ".join(f"{float(n):,.6g}" if "density" in name else f"{int(n):,}" for n in counts))
right, limit = [CODES - FIRES, FIRES], [2**24, FIRES]
counted = {name: [float(n) for n in counts] for name, counts in seen.items()}
density = counted.pop("histogram, density=True")
wrong = {name for name, counts in counted.items() if counts == limit}
raise SystemExit(not (wrong == {"histc", "histogram"} and counted["numpy.histogram"] == counted["histc of float64"] == right and density[1] > 2 * FIRES / CODES))
PY
