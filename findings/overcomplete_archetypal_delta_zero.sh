#!/usr/bin/env bash
# overcomplete's archetypal SAE with delta=0, the paper's A-SAE: dictionary and reconstruction are NaN from the first forward.
set -euo pipefail
source "$(dirname "$0")/environment_overcomplete.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from overcomplete.sae.rasae import RATopKSAE

torch.manual_seed(0)
points, x = torch.randn(40, 16), torch.randn(50, 16)
print(f"overcomplete {version('overcomplete')}\nexpected: delta bounds how far an atom may lie from the convex hull of the points, and with 0 it lies in it")
seen = {}
for delta in (1.0, 1e-6, 0.0):
    sae = RATopKSAE(16, 32, points, top_k=4, delta=delta).train()
    before = bool(sae.dictionary.Relax.isnan().any())
    recon = sae(x)[2]
    dictionary = sae.get_dictionary()
    seen[delta] = before, bool(recon.isnan().all()), bool(dictionary.isnan().all())
    print(f"seen: delta {delta:g}: all of the reconstruction is NaN {seen[delta][1]}, all of the dictionary {seen[delta][2]}")
raise SystemExit(seen != {1.0: (False,) * 3, 1e-6: (False,) * 3, 0.0: (False, True, True)})
PY
