#!/usr/bin/env bash
# PEFT's OSF: merge_and_unload after merge_adapter adds the change to the weights a second time, and disable_adapter then disables nothing; of other tuners the one is a no-op, and the other the base model.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from peft import LoraConfig, MissConfig, OSFConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60, "initializer_range": 0.2}
tokens = torch.arange(1, 11)[None]
print(f"peft {version('peft')}\nexpected: an adapter that is merged already is not merged again, and a model with its adapter disabled is the base model, or says that it is not")


def logits(model):
    with torch.no_grad():
        return model(tokens).logits


seen = {}
for name, kind, options in (("LoRA", LoraConfig, {"r": 4}), ("MiSS", MissConfig, {"r": 4}), ("OSF", OSFConfig, {})):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    base, query = logits(model), model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    model = get_peft_model(model, kind(target_modules=["q_proj", "v_proj"], **options)).eval()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    adapted = logits(model)
    model.merge_adapter()
    merged = logits(model)
    change = (model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight - query).norm()
    with model.disable_adapter():
        disabled = logits(model)
    model = model.merge_and_unload()
    times = ((model.model.layers[0].self_attn.q_proj.weight - query).norm() / change).item()
    pairs = (merged, adapted), (disabled, base), (logits(model), adapted)
    seen[name] = *(((one - other).norm() / other.norm()).item() for one, other in pairs), times
    print("seen: {}: logits are off by {:.0%} when merged, by {:.0%} of the base model's when disabled, by {:.0%} after merge_and_unload, with {:.2f} times the change in the weights".format(name, *seen[name]))
held = all(max(values[:3]) < 1e-4 and abs(values[3] - 1) < 1e-3 for name, values in seen.items() if name != "OSF")
once, disabled, unloaded, times = seen["OSF"]
raise SystemExit(not (held and once < 1e-4 and disabled > 0.1 and unloaded > 0.1 and abs(times - 2) < 1e-3))
PY
