#!/usr/bin/env bash
# sae-dashboard's cache_dir keeps activations by the number of their batch alone: dashboards of other tokens, or of another hook or model, in that folder are of the first ones' activations.
set -euo pipefail
source "$(dirname "$0")/environment_sae_dashboard.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version
from pathlib import Path

import torch
from tiny import dashboards, latents, sae

sae.fold_W_dec_norm()  # as the dashboards' runner does first of all
first, second = torch.randint(1, 50, (2, 20, 16))
print(f"sae-dashboard {version('sae-dashboard')}: the largest activation of latent 0, in dashboards of two lots of tokens with the same cache_dir")
right = [latents(tokens)[..., 0].max().item() for tokens in (first, second)]
print("expected: {:.3f} of the first tokens, {:.3f} of the second".format(*right))
plain = [dashboards(tokens).feature_stats.max[0] for tokens in (first, second)]
cached = [dashboards(tokens, cache_dir=Path("kept")).feature_stats.max[0] for tokens in (first, second)]
print("seen: without cache_dir {:.3f} and {:.3f}".format(*plain))
print("seen: with cache_dir {:.3f} and {:.3f}; in the folder: {}".format(*cached, sorted(path.name for path in Path("kept").iterdir())))
near = [abs(came - exact) < 1e-3 for came, exact in zip(plain + cached, right * 2)]
raise SystemExit(not (near == [True, True, True, False] and cached[0] == cached[1]))
PY
