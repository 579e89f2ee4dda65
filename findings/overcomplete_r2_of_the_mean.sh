#!/usr/bin/env bash
# overcomplete's R2, which train_sae logs: it subtracts one number from all dimensions, so the mean activation alone scores nearly 1.
set -euo pipefail
source "$(dirname "$0")/environment_overcomplete.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from overcomplete.metrics import r2_score
from sklearn.metrics import r2_score as sklearn_r2

torch.manual_seed(0)
TOKENS, WIDTH = 1000, 64
x = torch.randn(TOKENS, WIDTH)
x[:, 3] += 200  # one massive activation, as language models have
mean = x.mean(0).expand_as(x)
print(f"overcomplete {version('overcomplete')}\nexpected, as its docstring says: 0 for a reconstruction that is as good as the mean")
ours = {"mean activation": r2_score(x, mean).item(), "small activations": r2_score(1e-4 * x[:, 4:], 1e-4 * mean[:, 4:]).item()}
perfect = r2_score(1e-4 * x[:, 4:], 0.5e-4 * x[:, 4:]).item()
sklearn = sklearn_r2(x.numpy(), mean.numpy(), multioutput="variance_weighted")
print(f"seen: every token's reconstruction is the mean activation: R2 {ours['mean activation']:.4f} (scikit-learn's: {sklearn:.4f})")
print(f"seen: half of each activation, of size 1 and of size 1e-4: R2 {r2_score(x[:, 4:], 0.5 * x[:, 4:]).item():.4f} and {perfect:.4f}")
raise SystemExit(not (ours["mean activation"] > 0.99 and abs(sklearn) < 1e-3 and perfect > 0.98))
PY
