#!/usr/bin/env bash
# overcomplete's MpSAE and OMPSAE: one eval(), as for a validation, ends the dropout of atoms for the rest of training.
set -euo pipefail
source "$(dirname "$0")/environment_overcomplete.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from overcomplete.sae.mp_sae import MpSAE
from overcomplete.sae.omp_sae import OMPSAE

torch.manual_seed(0)
x = torch.randn(200, 16)
print(f"overcomplete {version('overcomplete')}\nexpected: after eval() and train() a model trains as it did before, as with nn.Dropout")
seen = {}
for kind in (MpSAE, OMPSAE):
    sae = kind(16, 64, k=3, dropout=0.5).train()
    first = [sae.encode(x)[1] for _ in range(2)]
    sae.eval()
    sae.train()
    later = [sae.encode(x)[1] for _ in range(2)]
    seen[kind.__name__] = not torch.equal(*first), not torch.equal(*later), sae.dropout
    print(f"seen: {kind.__name__}: training codes of the same batch vary {seen[kind.__name__][0]}; after an eval() and a train() "
          f"{seen[kind.__name__][1]}, and dropout is {sae.dropout}")
raise SystemExit(set(seen.values()) != {(True, False, None)})
PY
