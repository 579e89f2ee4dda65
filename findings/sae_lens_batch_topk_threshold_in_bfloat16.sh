#!/usr/bin/env bash
# SAELens' BatchTopK in bfloat16: the threshold is a float64 average until the dictionary is loaded, then a bfloat16 one that gets stuck.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sae-lens==6.54.12
"$python" -W ignore - <<'PY'
import sae_lens
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

STEPS, SIZES = 800, [1 + i / 8 for i in range(8)]
print(f"sae-lens {sae_lens.__version__}, bfloat16, {STEPS} steps on one batch")
print("expected: a dictionary that was saved and loaded finds the threshold that it would have found")
off = []
for size in SIZES:
    torch.manual_seed(0)
    x = (size * torch.randn(256, 16)).bfloat16()
    made = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=16, d_sae=64, k=4, dtype="bfloat16"))
    made.save_model("start")
    loaded = BatchTopKTrainingSAE.load_from_disk("start")
    step = TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False)
    with torch.no_grad():
        for _ in range(STEPS):
            made.training_forward_pass(step)
            loaded.training_forward_pass(step)
    one, other = made.topk_threshold, loaded.topk_threshold
    off.append((other.double() / one - 1).item())
    print(f"seen: batch of size {size:g}: made {one.item():.4f} ({one.dtype}), saved and loaded {other.item():.4f} ({other.dtype}), {off[-1]:+.0%}")
raise SystemExit(not (one.dtype == torch.float64 and other.dtype == torch.bfloat16 and min(off) < -0.1))
PY
