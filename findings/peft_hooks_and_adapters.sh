#!/usr/bin/env bash
# PEFT: a hook from before the adapter sees the layer without it, one from after it is gone with merge_and_unload; both in silence.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore - <<'PY'
import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
tokens, states = torch.arange(5, 14)[None], {}


def hook(module, name):
    module.register_forward_hook(lambda module, args, out: states.update({name: out}))


model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)).eval()
hook(model.model.layers[0].mlp.down_proj, "before")
hook(model.model.layers[0].mlp, "whole MLP")
adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["down_proj"], init_lora_weights=False)).eval()
hook(adapted.base_model.model.model.layers[0].mlp.down_proj, "after")
print(f"peft {peft.__version__}\nexpected: hooks on down_proj show its output, which is that of the MLP, with the adapter, merged or not")
seen = {}
with torch.no_grad():
    for stage in ("adapted", "merge_adapter", "merge_and_unload"):
        run = adapted
        if stage == "merge_adapter":
            adapted.merge_adapter()
        elif stage == "merge_and_unload":
            run = adapted.merge_and_unload()
        states.clear()
        run(tokens)
        output = states["whole MLP"]
        off = {name: (states[name] - output).norm() / output.norm() if name in states else None for name in ("before", "after")}
        seen[stage] = [None if value is None else bool(value < 1e-4) for value in off.values()]
        print(f"seen: {stage}: " + "; ".join(f"the hook put there {name} the adapter " + ("is not called" if value is None else f"is off by {value:.0%}") for name, value in off.items()))
raise SystemExit(seen != {"adapted": [False, True], "merge_adapter": [True, True], "merge_and_unload": [True, None]})
PY
