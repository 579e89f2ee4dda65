#!/usr/bin/env bash
# PEFT's adapter_names, an adapter for each row of a batch, is obeyed by LoRA, GLoRA and RoAd: VeRA, LoHa, LoKr, OFT, BOFT, HRA, IA3, MiSS and others drop it in silence, and all rows get the active adapter.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import peft
import torch
from torch import nn

torch.set_num_threads(1)
NAMES = ["one", "two", "__base__", "two"]
print(f'peft {version("peft")}: rows with adapters {NAMES}, while "one" is active\nexpected: each row as from its adapter alone, or an error')
ways = {
    "LoRA": ("LoraConfig", {"r": 4}),
    "RoAd": ("RoadConfig", {"group_size": 8}),
    "GLoRA": ("GloraConfig", {"r": 4}),
    "VeRA": ("VeraConfig", {"r": 4}),
    "LoHa": ("LoHaConfig", {"r": 4}),
    "LoKr": ("LoKrConfig", {"r": 4}),
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 4}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4}),
    "HRA": ("HRAConfig", {"r": 4}),
    "IA3": ("IA3Config", {"feedforward_modules": ["0"]}),
    "MiSS": ("MissConfig", {"r": 4}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 50}),
    "DeLoRA": ("DeloraConfig", {"r": 4}),
    "HiRA": ("HiraConfig", {"r": 4}),
}
seen = {}
for name, (kind, options) in ways.items():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)).eval()
    x = torch.randn(len(NAMES), 32)
    alone = {"__base__": base(x).detach()}
    config = getattr(peft, kind)(target_modules=["0", "2"], **options)
    model = peft.get_peft_model(base, config, adapter_name="one")
    model.add_adapter("two", config)
    for parameter, weight in model.named_parameters():
        if ".one" in parameter or ".two" in parameter:
            weight.data += 0.1 * torch.randn_like(weight)
    model.eval()
    for adapter in ("two", "one"):
        model.set_adapter(adapter)
        alone[adapter] = model(x).detach()
    found = model(x, adapter_names=NAMES).detach()
    wanted = torch.stack([alone[adapter][row] for row, adapter in enumerate(NAMES)])
    seen[name] = ((found - wanted).norm() / wanted.norm()).item(), torch.equal(found, alone["one"])
    print("seen: {}: off by {:.1%}; all rows are those of the active adapter: {}".format(name, *seen[name]))
obey = "LoRA", "RoAd", "GLoRA"
raise SystemExit(not all((off < 1e-5 and not same) if name in obey else (off > 0.01 and same) for name, (off, same) in seen.items()))
PY
