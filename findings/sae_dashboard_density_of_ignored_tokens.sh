#!/usr/bin/env bash
# sae-dashboard's ignore_tokens: tokens that are ignored, as padding, count as ones where the latent is off, so the density falls with the padding; in feature_stats they count as text.
set -euo pipefail
source "$(dirname "$0")/environment_sae_dashboard.sh"
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from tiny import dashboards, latents, sae

sae.fold_W_dec_norm()  # as the dashboards' runner does first of all
text = torch.randint(1, 50, (20, 16))
padded = torch.cat([text, torch.zeros(20, 16, dtype=torch.long)], dim=1)
share, of_padded = ((latents(tokens)[..., 0] > 0).float().mean().item() for tokens in (text, padded))
print(f"sae-dashboard {version('sae-dashboard')}: 16 tokens of text in each row, and the same with 16 of padding behind them, whose id is in ignore_tokens")
print(f"expected: latent 0 is on for {share:.1%} of the tokens that are not ignored, both times")
seen = []
for name, tokens in (("text alone", text), ("padded", padded)):
    came = dashboards(tokens, ignore_tokens={0})
    density = float(came.feature_data_dict[0].acts_histogram_data.title.split("= ")[1].rstrip("%")) / 100
    seen += [density, came.feature_stats.frac_nonzero[0]]
    print(f"seen: {name}: density {density:.1%}, and {seen[-1]:.1%} in feature_stats; of all tokens it is on for {of_padded if tokens is padded else share:.1%}")
right = [share, share, share / 2, of_padded]
raise SystemExit(not (all(abs(came - value) < 1e-3 for came, value in zip(seen, right)) and abs(of_padded - share) > 0.05))
PY
