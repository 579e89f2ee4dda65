#!/usr/bin/env bash
# PEFT's add_weighted_adapter under a name that is there does nothing, in silence: a sweep over weights that uses one name measures the first weights each time.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
"$python" - <<'PY'
import warnings

import peft
import torch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(32, 32, bias=False)

    def forward(self, x):
        return self.linear(x)


torch.manual_seed(0)
config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["linear"], init_lora_weights=False)
model = peft.get_peft_model(Model(), config, "first")
model.add_adapter("second", config)
x = torch.randn(4, 32)
print(f"peft {peft.__version__}: a sweep over weights, the outcome in 'mixture' each time, or each under a new name\nexpected: the same outputs, or an error")
seen = {}
with warnings.catch_warnings(record=True) as caught, torch.no_grad():
    warnings.simplefilter("always")
    for weight in 0.0, 0.5, 1.0:
        for name in "mixture", f"mixture_{10 * weight:.0f}":
            model.add_weighted_adapter(["first", "second"], [1 - weight, weight], name, combination_type="cat")
            model.set_adapter(name)
            seen[weight, name == "mixture"] = model(x).norm().item()
        print(f"seen: weights {1 - weight} and {weight}: the output's norm is {seen[weight, True]:.4f} in one name, {seen[weight, False]:.4f} in a new one")
print(f"seen: {len(caught)} warnings")
one, new = ([seen[weight, same] for weight in (0.0, 0.5, 1.0)] for same in (True, False))
raise SystemExit(not (not caught and one[0] == one[1] == one[2] == new[0] and len({round(each, 2) for each in new}) == 3))
PY
