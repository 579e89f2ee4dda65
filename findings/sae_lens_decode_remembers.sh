#!/usr/bin/env bash
# SAELens with normalised activations: decode(code) scales by what was encoded last, not by what the code is of.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 sae-lens==6.54.12
"$python" - <<'PY'
import sae_lens
import torch
from sae_lens import StandardSAE, StandardSAEConfig

torch.manual_seed(0)
print(f"sae-lens {sae_lens.__version__}\nexpected: decode is a function of its argument")
few, others = torch.randn(10, 16), 50 * torch.randn(10, 16)
moved = {}
for normalize in ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"):
    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=64, normalize_activations=normalize))
    with torch.no_grad():
        code = sae.encode(few)
        at_once = sae.decode(code)
        sae.encode(others)
        later = sae.decode(code)
    moved[normalize] = ((later - at_once).norm() / at_once.norm()).item()
    print(f"seen: {normalize}: the same code, decoded after other tokens were encoded, is off by {moved[normalize]:.1%}")
raise SystemExit([name for name, by in moved.items() if by > 1] != ["constant_norm_rescale", "layer_norm"])
PY
