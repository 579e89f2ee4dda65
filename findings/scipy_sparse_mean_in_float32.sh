#!/usr/bin/env bash
# scipy: the mean over an axis of a sparse float32 matrix adds up a small share for each row, and rounds each time: ten million ones have the mean 1.065.
set -euo pipefail
source "$(dirname "$0")/environment.sh" scipy==1.17.1 numpy==2.4.6
"$python" -W ignore - <<'PY'
import numpy as np
import scipy
from scipy.sparse import csr_array

print(f"scipy {scipy.__version__}, a latent that is 1 for every token: a sparse float32 matrix of one column\nexpected: its mean is 1, and its sum the number of tokens")
seen = {}
for tokens in (100_000, 1_000_000, 10_000_000):
    codes = csr_array((np.ones(tokens, np.float32), np.zeros(tokens, np.int32), np.arange(tokens + 1)), shape=(tokens, 1))
    column = codes.tocsc()
    seen[tokens] = [float(value) for value in (codes.mean(axis=0)[0], column.mean(axis=0)[0], codes.mean(), codes.astype(np.float64).mean(axis=0)[0])]
    sums = codes.sum(axis=0)[0], column.sum(axis=0)[0], codes.sum()
    print(f"seen: {tokens:,} tokens: mean(axis=0) {seen[tokens][0]:.4f} (csr), {seen[tokens][1]:.4f} (csc); mean() {seen[tokens][2]:.4f}; "
          f"of float64, mean(axis=0) {seen[tokens][3]:.4f}; sum(axis=0) {sums[0]:,.0f} (csr), {sums[1]:,.0f} (csc); sum() {sums[2]:,.0f}")
wrong = [round(value[0], 3) for value in seen.values()]
right = all(abs(value - 1) < 1e-5 for values in seen.values() for value in values[2:])
raise SystemExit(not (wrong == [1.001, 1.009, 1.065] == [round(value[1], 3) for value in seen.values()] and right))
PY
