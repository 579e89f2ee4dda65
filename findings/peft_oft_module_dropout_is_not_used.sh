#!/usr/bin/env bash
# PEFT's OFT makes a layer of module_dropout, "the probability for disabling adapter blocks during training", and never calls it: training with 0.9 is training with 0, to the bit; BOFT's and LoRA's act.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from peft import BOFTConfig, LoraConfig, OFTConfig, get_peft_model
from torch import nn

torch.set_num_threads(1)
STEPS = 20
print(f"peft {version('peft')}\nexpected: with dropout two forwards of training differ, and the trained weights are others")
ways = {
    "OFT, a linear layer": (nn.Linear(32, 32), OFTConfig, {"r": 0, "oft_block_size": 4}, "module_dropout", (16, 32)),
    "OFT, a convolution": (nn.Conv2d(8, 8, 3), OFTConfig, {"r": 0, "oft_block_size": 4}, "module_dropout", (16, 8, 5, 5)),
    "BOFT, a linear layer": (nn.Linear(32, 32), BOFTConfig, {"boft_block_size": 4}, "boft_dropout", (16, 32)),
    "LoRA, a linear layer": (nn.Linear(32, 32), LoraConfig, {"r": 4}, "lora_dropout", (16, 32)),
}


def trained(layer, kind, options, dropout, shape):
    """The adapter's weights after training, and whether two forwards of training differ."""
    torch.manual_seed(0)
    base = nn.Sequential(type(layer)(*((32, 32) if isinstance(layer, nn.Linear) else (8, 8, 3))))
    model = get_peft_model(base, kind(target_modules=["0"], **options, **dropout)).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    x = torch.randn(shape)
    target = torch.randn_like(model(x))
    optimizer = torch.optim.Adam(weights, lr=0.05)
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        (model(x) - target).pow(2).mean().backward()
        optimizer.step()
    with torch.no_grad():
        differ = any(not torch.equal(model(x), model(x)) for _ in range(5))
    return torch.cat([weight.detach().flatten() for weight in weights]), differ


seen = {}
for name, (layer, kind, options, option, shape) in ways.items():
    without, _ = trained(layer, kind, options, {}, shape)
    dropped, differ = trained(layer, kind, options, {option: 0.9}, shape)
    seen[name] = differ, torch.equal(without, dropped)
    print(f"seen: {name}, {option}=0.9: two forwards of training differ: {differ}; trained weights are those of training without it: {seen[name][1]}")
raise SystemExit(not all(found == ((False, True) if name.startswith("OFT") else (True, False)) for name, found in seen.items()))
PY
