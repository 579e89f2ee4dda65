#!/usr/bin/env bash
# numpy with bfloat16 of ml_dtypes, as JAX's arrays have it: the mean of 4,096 ones is 0.0625, nanmean and nansum are NaN, and NaN leaves a sorted array unsorted.
set -euo pipefail
source "$(dirname "$0")/environment.sh" ml_dtypes==0.6.0 numpy==2.4.6
"$python" -W ignore - <<'PY'
import ml_dtypes
import numpy as np

TOKENS = 4096
print(f"ml_dtypes {ml_dtypes.__version__}, numpy {np.__version__}\nexpected: what float16 of numpy gives")
functions = {
    f"mean of {TOKENS:,} ones": lambda dtype: np.ones(TOKENS, dtype).mean(),
    "mean of each column of as many": lambda dtype: np.ones((TOKENS, 2), dtype).mean(0)[0],
    f"sum of {TOKENS:,} times 1/64": lambda dtype: np.full(TOKENS, 1 / 64, dtype).sum(),
    "nansum of 1, NaN, 2": lambda dtype: np.nansum(np.array([1, np.nan, 2], dtype)),
    "nanmean of 1, NaN, 2": lambda dtype: np.nanmean(np.array([1, np.nan, 2], dtype)),
    "nanmax of 1, NaN, 2": lambda dtype: np.nanmax(np.array([1, np.nan, 2], dtype)),
    "sort of 3, NaN, -1, 2": lambda dtype: np.sort(np.array([3, np.nan, -1, 2], dtype)),
    "argsort of 3, NaN, -1, 2": lambda dtype: np.argsort(np.array([3, np.nan, -1, 2], dtype)),
    "median of 5, NaN, 1, 2, 3": lambda dtype: np.median(np.array([5, np.nan, 1, 2, 3], dtype)),
    "dot of as many ones": lambda dtype: np.ones(TOKENS, dtype) @ np.ones(TOKENS, dtype),
    "max of 1, NaN, 2": lambda dtype: np.array([1, np.nan, 2], dtype).max(),
}
equal = {}
for name, function in functions.items():
    half, brain = (np.asarray(function(dtype), dtype=float).tolist() for dtype in (np.float16, ml_dtypes.bfloat16))
    equal[name] = np.array_equal(half, brain, equal_nan=True)
    print(f"seen: {name}: float16 {half}, bfloat16 {brain}")
raise SystemExit([name.split()[0] for name, same in equal.items() if same] != ["nanmax", "dot", "max"])
PY
