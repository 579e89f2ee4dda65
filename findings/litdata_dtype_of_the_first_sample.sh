#!/usr/bin/env bash
# litdata's optimize: a field of one dimension is read in the first sample's dtype and as one dimension, whatever a later sample was written in: ids of int64 after int32 come back as [7, 0, 8, 0].
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 litdata==0.2.76
unset TQDM_DISABLE # litdata fails without its bar
cat > samples.py <<'PY'
import numpy as np
import torch

FIELDS = {
    "int32, then int64": [np.array([5, 6], np.int32), np.array([7, 8], np.int64)],
    "float32, then float64": [np.ones(2, np.float32), np.ones(2)],
    "float64, then float32": [np.ones(2), np.ones(2, np.float32)],
    "tensors of float32, then of float64": [torch.ones(2), torch.ones(2, dtype=torch.float64)],
    "one dimension, then two": [np.ones(4), np.ones((2, 2))],
    "float32 of two dimensions, then float64": [np.ones((1, 2), np.float32), np.ones((1, 2))],
}


def sample(index):
    return {name: values[index] for name, values in FIELDS.items()}
PY
cat > run.py <<'PY'
import contextlib
import os

import litdata
from samples import FIELDS, sample

if __name__ == "__main__":
    print(f"litdata {litdata.__version__}\nexpected: the second sample comes back as it was written, or an error")
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        litdata.optimize(sample, [0, 1], output_dir="set", chunk_bytes="1MB", num_workers=1)
    back, wrong = litdata.StreamingDataset("set", shuffle=False)[1], {}
    for name, values in FIELDS.items():
        wrong[name] = values[1].tolist() != back[name].tolist()
        print(f"seen: {name}: {values[1].tolist()} comes back as {back[name].tolist()}")
    right = "float32 of two dimensions, then float64"
    raise SystemExit(not (not wrong.pop(right) and all(wrong.values())))
PY
"$python" -W ignore run.py 2>/dev/null
