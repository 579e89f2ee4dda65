#!/usr/bin/env bash
# PEFT's C3A with two adapters on feeds the second with what the first gave and not with the layer's input: their order matters, the sum is another than when they are merged, and the first at zero turns off the second.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from peft import C3AConfig, LoHaConfig, LoraConfig, get_peft_model
from torch import nn

torch.set_num_threads(1)
print(f"peft {version('peft')}\nexpected: of one linear layer, two adapters together add what each adds, in either order, and merged into the weights they do the same")


def off(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


seen = {}
for name, kind, options in (("LoRA", LoraConfig, {"r": 4}), ("LoHa", LoHaConfig, {"r": 4}), ("C3A", C3AConfig, {"block_size": 8})):
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(32, 32)), torch.randn(16, 32)
    before = base(x).detach()
    config = kind(target_modules=["0"], **options)
    model = get_peft_model(base, config, adapter_name="one")
    model.add_adapter("two", config)
    for parameter, weight in model.named_parameters():
        if ".one" in parameter or ".two" in parameter:
            nn.init.normal_(weight)
    model.eval()
    first = [weight for parameter, weight in model.named_parameters() if ".one" in parameter]

    @torch.no_grad()
    def added(*adapters):
        model.base_model.set_adapter(list(adapters))
        return model(x) - before

    wanted = added("one") + added("two")
    together, other_order = off(added("one", "two"), wanted), off(added("two", "one"), wanted)
    added("one", "two")
    model.merge_adapter()
    with torch.no_grad():
        merged = off(model(x) - before, wanted)
    model.unmerge_adapter()
    for weight in first:
        weight.data.zero_()
    zeroed = off(added("one", "two"), added("two"))
    seen[name] = together, other_order, merged, zeroed
    print("seen: {}: both together are off from the sum by {:.0%}, in the other order by {:.0%}, merged by {:.0%}; with the first one zero they are off from the second by {:.0%}".format(name, *seen[name]))
right = all(max(values) < 1e-4 for name, values in seen.items() if name != "C3A")
together, other_order, merged, zeroed = seen["C3A"]
raise SystemExit(not (right and min(together, other_order) > 0.1 and merged < 1e-4 and abs(zeroed - 1) < 1e-4))
PY
