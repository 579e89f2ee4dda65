#!/usr/bin/env bash
# PEFT's TIES merges (ties, ties_svd, dare_ties) elect signs and count votes before weights are applied: an adapter of weight 0 takes part, and one that is subtracted, weight -1, is not the negated one that is added.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"])
model = get_peft_model(nn.Sequential(nn.Linear(48, 48)), config, adapter_name="one")
layer = model.base_model.model[0]
for name in ("other", "negated"):
    model.add_adapter(name, config)
for name in ("one", "other"):
    nn.init.normal_(layer.lora_A[name].weight)
    nn.init.normal_(layer.lora_B[name].weight)
layer.lora_A["negated"].weight.data = layer.lora_A["other"].weight.data.clone()
layer.lora_B["negated"].weight.data = -layer.lora_B["other"].weight.data
print(f"peft {version('peft')}, nothing pruned (density=1)")
print('expected: "weights can be positive or negative, allowing for both addition and subtraction": weight 0 leaves an adapter out, weight -1 of it is weight 1 of what it negates')
count = 0


def merged(kind, adapters, weights):
    global count
    count += 1
    options = {} if kind in ("svd", "cat") else {"density": 1.0}
    model.add_weighted_adapter(adapters, weights, f"merge{count}", combination_type=kind, **options, **({"svd_rank": 48} if "svd" in kind else {}))
    return layer.get_delta_weight(f"merge{count}").detach()


def off(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


one, seen = layer.get_delta_weight("one").detach(), {}
for kind in ("svd", "magnitude_prune_svd", "dare_linear_svd", "ties_svd", "dare_ties_svd", "ties", "dare_ties"):
    alone = off(merged(kind, ["one"], [1.0]), one)
    left_out = off(merged(kind, ["one", "other"], [1.0, 0.0]), one)
    subtracted = off(merged(kind, ["one", "other"], [1.0, -1.0]), merged(kind, ["one", "negated"], [1.0, 1.0]))
    seen[kind] = alone, left_out, subtracted
    print("seen: {}: merged alone, one adapter is off by {:.0%}; beside another of weight 0 by {:.0%}; subtracting the other is off by {:.0%} from adding what it negates".format(kind, *seen[kind]))
right = all(max(values) < 1e-3 for kind, values in seen.items() if "ties" not in kind)
raise SystemExit(not (right and all(alone < 1e-3 and min(others) > 0.2 for kind, (alone, *others) in seen.items() if "ties" in kind)))
PY
