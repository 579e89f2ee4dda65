#!/usr/bin/env bash
# safetensors.numpy writes a transposed array's memory as it lies, under the transposed shape: what is read back is another matrix.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
"$python" -W ignore - <<'PY'
import numpy as np
import safetensors
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

print(f"safetensors {safetensors.__version__}, numpy {np.__version__}\nexpected: an array that is equal, or an error as from safetensors.torch")
W = np.arange(6, dtype=np.float32).reshape(2, 3)
arrays = {"as it is": W, "W.T": W.T, "in Fortran's order": np.asfortranarray(W), "every other column": W[:, ::2]}
equal = {}
for name, array in arrays.items():
    save_file({"W": array}, "array.safetensors")
    read = load_file("array.safetensors")["W"]
    equal[name] = np.array_equal(read, array)
    print(f"seen: {name}: {array.tolist()} is read back as {read.tolist()}")
try:
    save_tensors({"W": torch.from_numpy(W).T}, "tensor.safetensors")
    refused = False
except ValueError as error:
    refused = True
    print(f"seen: safetensors.torch of W.T: {str(error)[:62]}")
raise SystemExit(not (refused and [name for name, same in equal.items() if same] == ["as it is"]))
PY
