#!/usr/bin/env bash
# overcomplete: weights loaded into a model that is in eval mode encode, and the dictionary that decodes stays the random one.
set -euo pipefail
source "$(dirname "$0")/environment_overcomplete.sh"
"$python" - <<'PY'
from importlib.metadata import version

import torch
from overcomplete.sae import TopKSAE

torch.manual_seed(0)
print(f"overcomplete {version('overcomplete')}\nexpected: eval() and load_state_dict() in either order make the same model")
trained, x = TopKSAE(16, 64, top_k=4).eval(), torch.randn(50, 16)
same = {}
for order in ("load_state_dict, eval", "eval, load_state_dict"):
    sae = TopKSAE(16, 64, top_k=4)
    for step in order.split(", "):
        sae.eval() if step == "eval" else sae.load_state_dict(trained.state_dict())
    with torch.no_grad():
        codes, recon = (torch.allclose(sae(x)[i], trained(x)[i], atol=1e-5) for i in (1, 2))
        off = (sae.get_dictionary() - trained.get_dictionary()).norm() / trained.get_dictionary().norm()
    same[order] = codes, recon
    print(f"seen: {order}: the same codes {codes}, the same reconstruction {recon}, the dictionary is off by {off:.0%}")
raise SystemExit(list(same.values()) != [(True, True), (True, False)])
PY
