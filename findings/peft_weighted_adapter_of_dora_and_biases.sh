#!/usr/bin/env bash
# PEFT's add_weighted_adapter combines A and B alone: DoRA's trained magnitudes and the biases of lora_bias=True are left out, in silence, so even one adapter with weight 1 comes out as another.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
"$python" - <<'PY'
import warnings

import peft
import torch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(32, 32)

    def forward(self, x):
        return self.linear(x)


x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
print(f"peft {peft.__version__}, one adapter with weight 1\nexpected: the new adapter does what that one does")
seen = {}
with warnings.catch_warnings(record=True) as caught, torch.no_grad():
    warnings.simplefilter("always")
    for option in {}, {"use_dora": True}, {"lora_bias": True}:
        torch.manual_seed(0)
        config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["linear"], **option)
        model = peft.get_peft_model(Model(), config, "trained")
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        model.add_weighted_adapter(["trained"], [1.0], "copy")
        outputs = {}
        for name in "trained", "copy":
            model.set_adapter(name)
            outputs[name] = model(x)
        with model.disable_adapter():
            base = model(x)
        off = ((outputs["copy"] - outputs["trained"]).norm() / (outputs["trained"] - base).norm()).item()
        seen[str(option)] = off
        print(f"seen: {option or 'LoRA'}: outputs are off by {off:.1%} of what the adapter changes")
print(f"seen: {len(caught)} warnings")
plain, dora, bias = seen.values()
raise SystemExit(not (not caught and plain < 1e-5 and dora > 0.2 and bias > 0.2))
PY
