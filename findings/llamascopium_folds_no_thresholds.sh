#!/usr/bin/env bash
# llamascopium: folding the activation scale into the weights leaves JumpReLU's thresholds, so the function is another.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 llamascopium==2.0.0b34 "transformer-lens<4"
"$python" -W ignore - <<'PY'
import tempfile
from importlib.metadata import version

import torch
from llamascopium import SAEConfig, SparseAutoEncoder

print(f"llamascopium {version('llamascopium')}\nexpected: fold_activation_scale changes the weights and not the function")
POINT, off = "blocks.3.hook_mlp_out", {}
for kind in ("relu", "jumprelu"):
    torch.manual_seed(0)
    sizes = {"d_model": 8, "expansion_factor": 3, "top_k": 3, "hook_point_in": POINT, "hook_point_out": POINT}
    cfg = SAEConfig(**sizes, act_fn=kind, device="cpu", dtype=torch.float32)
    sae, folder, x = SparseAutoEncoder(cfg), tempfile.mkdtemp(), 2 * torch.randn(64, 8)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
        sae.set_dataset_average_activation_norm({POINT: 5.0})
        sae.save_pretrained(folder, fold_activation_scale=False)
        cfg.save_hyperparameters(folder)
        beside = SparseAutoEncoder.from_pretrained(folder)
        scaled, scales = beside.normalize_activations({POINT: x}, return_scale_factor=True)
        expected = beside.denormalize_activations({POINT: beside(scaled[POINT])}, scales)[POINT]
        folded = SparseAutoEncoder.from_pretrained(folder, fold_activation_scale=True)(x)
    off[kind] = ((folded - expected).norm() / expected.norm()).item()
    print(f"seen: {kind}: the folded dictionary's output is off by {off[kind]:.1e} of its length")
raise SystemExit(not (off["relu"] < 1e-5 and off["jumprelu"] > 0.01))
PY
