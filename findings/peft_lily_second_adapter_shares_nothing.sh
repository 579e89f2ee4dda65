#!/usr/bin/env bash
# PEFT's Lily shares one B over all layers; an adapter from add_adapter has one for each layer, trains more weights, and once saved comes back with one layer's B in all, as another function.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from peft import LilyConfig, LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 60, "initializer_range": 0.2}
tokens = torch.arange(1, 11)[None]
print(f"peft {version('peft')}, 4 layers\nexpected: two adapters of one config have as many weights, and what is saved of each comes back")


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes))


def logits(model):
    with torch.no_grad():
        return model.eval()(tokens).logits


def adapters(config):
    """Of the first adapter and one that was added: how many weights train, and how far off the logits are once it was saved and loaded."""
    model = get_peft_model(base(), config, adapter_name="first")
    model.add_adapter("second", config)
    rows = []
    for name in ("first", "second"):
        model.set_adapter(name)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        for weight in trained:
            weight.data += 0.2 * torch.randn_like(weight)
        kept = logits(model)
        model.save_pretrained("saved", selected_adapters=[name])
        again = logits(PeftModel.from_pretrained(base(), f"saved/{name}"))
        rows.append((sum(weight.numel() for weight in trained), ((again - kept).norm() / kept.norm()).item()))
    return rows


seen = {}
for name, config in (("LoRA", LoraConfig(r=4, target_modules=["q_proj"])), ("Lily", LilyConfig(r=4, target_modules=["q_proj"]))):
    seen[name] = adapters(config)
    for which, (count, off) in zip(("first", "second"), seen[name], strict=True):
        print(f"seen: {name}, {which} adapter: {count} weights train; saved and loaded its logits are off by {off:.0%} of their norm")
(first, exact), (second, off) = seen["Lily"]
raise SystemExit(not (len(set(seen["LoRA"])) == 1 and seen["LoRA"][0][1] == exact == 0 and second > first and off > 0.1))
PY
