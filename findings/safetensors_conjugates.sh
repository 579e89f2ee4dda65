#!/usr/bin/env bash
# safetensors.torch writes a tensor that conj() or mH gave as its memory lies: the imaginary part of what is read back has the other sign.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
"$python" -W ignore - <<'PY'
import safetensors
import torch
from safetensors.torch import load, load_file, save, save_file

print(f"safetensors {safetensors.__version__}, torch {torch.__version__}\nexpected: a tensor that is equal, as from torch.save, or an error as for other views")
torch.manual_seed(0)
directions = torch.randn(4, dtype=torch.complex64)
tensors = {
    "complex": directions,
    "its conj()": directions.conj(),
    "its mH": directions[None].mH,
    "conj() of its Fourier transform": torch.fft.fft(directions).conj(),
    "its conj().resolve_conj()": directions.conj().resolve_conj(),
}
seen = {}
for name, tensor in tensors.items():
    results = []
    for kind in ("file", "bytes", "torch.save"):
        if kind == "file":
            save_file({"W": tensor}, "W.safetensors")
            read = load_file("W.safetensors")["W"]
        elif kind == "bytes":
            read = load(save({"W": tensor}))["W"]
        else:
            torch.save(tensor, "W.pt")
            read = torch.load("W.pt")
        results.append("equal" if torch.equal(read, tensor) else "conjugated" if torch.equal(read, tensor.conj()) else "other")
    seen[name] = results
    print(f"seen: {name}: from a file {results[0]}, from bytes {results[1]}, from torch.save {results[2]}")
lazy = {name for name, tensor in tensors.items() if tensor.is_conj()}
right, wrong = ["equal"] * 3, ["conjugated", "conjugated", "equal"]
raise SystemExit(not (len(lazy) == 3 and all(results == (wrong if name in lazy else right) for name, results in seen.items())))
PY
