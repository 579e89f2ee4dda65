#!/usr/bin/env bash
# SAELens with normalised activations: Gated's sparsity and gate losses are those of raw activations, Matryoshka's forward ends in an error.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sae-lens==6.54.12
"$python" -W ignore - 2>/dev/null <<'PY'
import sae_lens
import torch
from sae_lens import (
    BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, GatedTrainingSAE, GatedTrainingSAEConfig, JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig, MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig, StandardTrainingSAE,
    StandardTrainingSAEConfig,
)  # fmt: skip
from sae_lens.saes.sae import TrainStepInput

D, LATENTS, TIMES = 16, 64, 100
kinds = {
    StandardTrainingSAE: (StandardTrainingSAEConfig, {}, "l1"),
    JumpReLUTrainingSAE: (JumpReLUTrainingSAEConfig, {}, "l0"),
    GatedTrainingSAE: (GatedTrainingSAEConfig, {}, "l1"),
    BatchTopKTrainingSAE: (BatchTopKTrainingSAEConfig, {"k": 4}, None),
    MatryoshkaBatchTopKTrainingSAE: (MatryoshkaBatchTopKTrainingSAEConfig, {"k": 4, "matryoshka_widths": [16, LATENTS]}, None),
}
x = torch.randn(32, D, generator=torch.Generator().manual_seed(0))
print(f"sae-lens {sae_lens.__version__}, normalize_activations='layer_norm'")
print(f"expected: the latents of tokens that are {TIMES} times as long are the same, and so is the loss of their sparsity")
seen = {}
for kind, (config, options, name) in kinds.items():
    torch.manual_seed(0)
    sae = kind(config(d_in=D, d_sae=LATENTS, normalize_activations="layer_norm", **options))
    try:
        steps = [
            sae.training_forward_pass(
                TrainStepInput(
                    sae_in=x * times, coefficients={name: 1.0}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
                )
            )
            for times in (1, TIMES)
        ]
    except AttributeError as error:
        seen[kind] = "error"
        print(f"seen: {kind.__name__}: AttributeError: {error}")
        continue
    latents = ((steps[1].feature_acts - steps[0].feature_acts).norm() / steps[0].feature_acts.norm()).item()
    assert latents < 1e-3
    seen[kind] = round((steps[1].losses[f"{name}_loss"] / steps[0].losses[f"{name}_loss"]).item(), 1) if name else 1.0
    print(f"seen: {kind.__name__}: the same latents" + (f", {seen[kind]:g} times the {name} loss" if name else ""))
raise SystemExit(list(seen.values()) != [1.0, 1.0, float(TIMES), 1.0, "error"])
PY
