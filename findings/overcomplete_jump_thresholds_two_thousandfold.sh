#!/usr/bin/env bash
# overcomplete's JumpSAE: the thresholds' pseudo-gradient is divided by the bandwidth twice, and is 2,000 times the gradient by default.
set -euo pipefail
source "$(dirname "$0")/environment_overcomplete.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from overcomplete.sae.jump_sae import JumpSAE, jump_relu

THRESHOLD, SAMPLES = 0.5, 2_000_001
sae = JumpSAE(4, 8)
x = torch.linspace(0, 1, SAMPLES, dtype=torch.float64)[:, None]
step = 0.01
above = [x.masked_fill(x < THRESHOLD + side, 0).mean().item() for side in (-step, step)]
true = (above[1] - above[0]) / (2 * step)
print(f"overcomplete {version('overcomplete')}, bandwidth {sae.bandwidth:g}, the default; x is uniform on [0, 1], the threshold {THRESHOLD}")
print(f"expected: the threshold's gradient of the mean of JumpReLU(x) is about that by differences, {true:.3f}")
times = {}
for name, kernel in JumpSAE._KERNELS.items():
    threshold = torch.tensor([THRESHOLD], dtype=torch.float64, requires_grad=True)
    jump_relu(x, threshold, kernel, sae.bandwidth).mean().backward()
    times[name] = round(threshold.grad.item() / true)
    default = ", the default" if sae.kernel_fn is kernel else ""
    print(f"seen: {name}{default}: {threshold.grad.item():.1f}, {times[name]} times")
seen = {name: round(value, -2) for name, value in times.items() if name != "cosine"}
one = {"rectangle", "triangular", "epanechnikov", "quartic", "cauchy"}
raise SystemExit(seen != {**dict.fromkeys(one, 1000), "gaussian": 500, "silverman": 2000} or times["cosine"] != 1)
PY
