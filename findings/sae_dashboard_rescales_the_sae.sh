#!/usr/bin/env bash
# sae-dashboard's run folds the decoder's norms into the SAE that it was given, and leaves it so: the caller's latents have another scale from then on, and dashboards show that one.
set -euo pipefail
source "$(dirname "$0")/environment_sae_dashboard.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from tiny import LATENTS, dashboards, latents, sae

tokens = torch.randint(1, 50, (20, 16))
norms = sae.W_dec.norm(dim=1)[:LATENTS].tolist()
before = latents(tokens).flatten(0, 1).amax(0).tolist()
print(f"sae-dashboard {version('sae-dashboard')}: an SAE whose first latents' directions have the norms {[round(x, 2) for x in norms]}")
print(f"expected: their largest activations are {[round(x, 2) for x in before]}, in dashboards and in the SAE before and after")
shown = dashboards(tokens).feature_stats.max
after = latents(tokens).flatten(0, 1).amax(0).tolist()
print(f"seen: in dashboards {[round(x, 2) for x in shown]}; in the SAE afterwards {[round(x, 2) for x in after]}, whose directions then have the norms {[round(x, 2) for x in sae.W_dec.norm(dim=1)[:LATENTS].tolist()]}")
scaled = [norm * x for norm, x in zip(norms, before)]
raise SystemExit(not (min(norms) > 2 and all(abs(x - y) < 1e-2 for came in (shown, after) for x, y in zip(came, scaled))))
PY
