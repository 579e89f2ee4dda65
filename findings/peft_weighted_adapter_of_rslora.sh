#!/usr/bin/env bash
# PEFT's add_weighted_adapter of LoRA with use_rslora: the new adapter keeps that option and gets lora_alpha = r, so its scale is the root of r and not 1, and what it adds is that many times too large.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
"$python" -W ignore - <<'PY'
import peft
import torch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(32, 32, bias=False)


print(f"peft {peft.__version__}, two LoRAs of rank 8 with weights 1 and 1, and one of them with weight 1")
print("expected: what the new adapter adds is the sum of what they add")
seen, way = {}, {"cat": {}, "svd": {"svd_rank": 16}, "linear": {}}
for use_rslora in False, True:
    torch.manual_seed(0)
    options = {"r": 8, "lora_alpha": 8, "target_modules": ["linear"], "init_lora_weights": False, "use_rslora": use_rslora}
    model = peft.get_peft_model(Model(), peft.LoraConfig(**options), "first")
    model.add_adapter("second", peft.LoraConfig(**options))
    delta = model.base_model.model.linear.get_delta_weight
    for kind in way:
        names = ["first"] if kind == "linear" else ["first", "second"]
        model.add_weighted_adapter(names, [1.0] * len(names), kind, combination_type=kind, **way[kind])
        right, found = sum(delta(name) for name in names).flatten(), delta(kind).flatten()
        times = (found @ right / (right @ right)).item()
        seen[use_rslora, kind] = times, torch.allclose(found, times * right, rtol=1e-3, atol=1e-4)
        print(f"seen: use_rslora={use_rslora}, {kind}, {' and '.join(names)}: {times:.3f} times that")
exact = all(each[1] for each in seen.values())
expected = {"cat": 16**0.5, "svd": 16**0.5, "linear": 8**0.5}
raise SystemExit(not (exact and all(abs(times - (expected[kind] if rslora else 1)) < 1e-3 for (rslora, kind), (times, _) in seen.items())))
PY
