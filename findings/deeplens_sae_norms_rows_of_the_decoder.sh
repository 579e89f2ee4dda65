#!/usr/bin/env bash
# deeplens-sae's unit_norm_decoder, True by default: rows of the decoder are made unit, one for each width of the activation, and not the latents' directions.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0
# It asks for transformers and datasets, which the dictionary does not use.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps deeplens-sae==0.1.1; fi
mkdir deeplens
cat > deeplens/__init__.py <<'PY'
from importlib.metadata import distribution

__path__ = [str(distribution("deeplens-sae").locate_file("deeplens"))]
PY
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from deeplens.sae import SparseAutoencoder

WIDTH, LATENTS = 64, 512
torch.manual_seed(0)
sae = SparseAutoencoder(input_dims=WIDTH, n_features=LATENTS, k=8, input_norm=False)
print(f"deeplens-sae {version('deeplens-sae')}: SparseAutoencoder of {LATENTS} latents on activations {WIDTH} wide, unit_norm_decoder={sae.unit_norm_decoder}")
print("expected: what one latent of activation 1 adds has norm 1: its docstring has each feature's decoder vector so")
optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
for _ in range(50):
    optimizer.zero_grad()
    sae.loss(torch.randn(256, WIDTH))[0].backward()
    optimizer.step()
    sae.post_step()
with torch.no_grad():
    latents = sae.decode(torch.eye(LATENTS)).norm(dim=1)
    rows = sae.decoder.weight.norm(dim=1)
print(f"seen: norms of the {LATENTS} latents' directions: {latents.min():.3f} to {latents.max():.3f}, mean {latents.mean():.3f}")
print(f"seen: norms of the {WIDTH} rows, one for each width: {rows.min():.3f} to {rows.max():.3f}")
raise SystemExit(not (latents.max() < 0.9 and torch.allclose(rows, torch.ones(WIDTH), atol=1e-4)))
PY
