#!/usr/bin/env bash
# PEFT with two OFT adapters on: merged into the weights they are applied in the other order than in the forward, and rotations do not commute, so the merged model is another.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60, "initializer_range": 0.2}
tokens = torch.arange(1, 11)[None]
print(f"peft {version('peft')}\nexpected: merging the adapters that are on changes logits by rounding only")


def far(config, names):
    """How far merging takes the logits, as a share of their norm: with the active adapters as they are, and with their names turned around."""
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    for name, weight in model.named_parameters():
        if any(f".{adapter}" in name for adapter in names):
            weight.data += 0.1 * torch.randn_like(weight)
    model.base_model.set_adapter(names)
    model.eval()
    with torch.no_grad():
        forward = model(tokens).logits
        model.merge_adapter(names)
        merged = model(tokens).logits
        model.unmerge_adapter()
        model.merge_adapter(names[::-1])
        other = model(tokens).logits
    return [((logits - forward).norm() / forward.norm()).item() for logits in (merged, other)]


options = {"target_modules": ["q_proj", "v_proj"]}
configs = {
    "LoRA": LoraConfig(r=4, **options),
    "HRA": HRAConfig(r=4, **options),
    "BOFT": BOFTConfig(boft_block_size=4, **options),
    "OFT": OFTConfig(oft_block_size=8, **options),
}
seen = {}
for name, config in configs.items():
    one, two = far(config, ["first"]), far(config, ["first", "second"])
    seen[name] = one[0], *two
    print(f"seen: {name}: merged, one adapter's logits move by {one[0]:.0e} of their norm, two adapters' by {two[0]:.0e}, and by {two[1]:.0e} if the names are given the other way around")
held = all(max(values[:2]) < 1e-4 for name, values in seen.items() if name != "OFT")
raise SystemExit(not (held and seen["OFT"][1] > 0.1 and max(seen["OFT"][0], seen["OFT"][2]) < 1e-4))
PY
