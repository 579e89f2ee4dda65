#!/usr/bin/env bash
# pyvene's PCARotatedSpaceIntervention of fewer components than dimensions: what lies outside of them is dropped, so a base exchanged with itself changes; the low-rank rotation keeps it.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 pyvene==0.1.8 scikit-learn==1.9.1
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from pyvene import LowRankRotatedSpaceIntervention, PCARotatedSpaceIntervention
from sklearn.decomposition import PCA

WIDTH = 64
torch.manual_seed(0)
activations = torch.randn(2000, WIDTH) * torch.linspace(2, 0.5, WIDTH)
mean, std = activations.mean(0), activations.std(0)
print(f"pyvene {version('pyvene')}: activations {WIDTH} wide, and the components of their PCA")
print("expected: exchanged with itself an activation stays what it is, and with another one only its components change, as with the low-rank rotation")
base, source = activations[:100], activations[100:200]


def outside(change, directions):
    """The share of a change that does not lie in the span of directions."""
    inside = change @ torch.linalg.pinv(directions) @ directions
    return ((change - inside).norm() / change.norm()).item()


seen = {}
with torch.no_grad():
    for count in (WIDTH, 48, 8):
        pca = PCA(count).fit(((activations - mean) / std).numpy())
        exchange = PCARotatedSpaceIntervention(embed_dim=WIDTH, pca=pca, pca_mean=mean.numpy(), pca_std=std.numpy())
        low_rank = LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=count)
        kinds = {"PCA": (exchange, exchange.pca_components * std), "low rank": (low_rank, low_rank.rotate_layer.weight.T)}
        for name, (kind, directions) in kinds.items():
            itself = ((kind(base.clone(), base.clone()) - base).norm() / base.norm()).item()
            other = outside(kind(base.clone(), source.clone()) - base, directions)
            seen[name, count] = itself
            print(f"seen: {name}, {count} components: with itself it moves by {itself:.0%} of its norm; of what another one changes {other:.0%} lies outside of them")
kept = all(seen["low rank", count] < 1e-4 for count in (WIDTH, 48, 8)) and seen["PCA", WIDTH] < 1e-4
raise SystemExit(not (kept and seen["PCA", 48] > 0.2 and seen["PCA", 8] > 0.7))
PY
