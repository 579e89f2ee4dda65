#!/usr/bin/env bash
# Falcon's MLP and Llama 4's shared expert, kept by a hook: the block adds attention's, or the routed experts', output to that tensor in place, so what was kept becomes the sum.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from transformers import FalconConfig, FalconForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, Llama4ForCausalLM, Llama4TextConfig, Qwen2MoeConfig, Qwen2MoeForCausalLM

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
experts = {"intermediate_size": 48, "num_key_value_heads": 2, "num_experts_per_tok": 1}
qwen = Qwen2MoeConfig(**sizes, **experts, moe_intermediate_size=48, shared_expert_intermediate_size=48, num_experts=4)
llama = Llama4TextConfig(**sizes, **experts, head_dim=8, intermediate_size_mlp=48, num_local_experts=4)
torch.manual_seed(0)
models = {
    "GPT-NeoX, mlp": (GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=48)), "gpt_neox.layers.0.mlp"),
    "Falcon, mlp": (FalconForCausalLM(FalconConfig(**sizes)), "transformer.h.0.mlp"),
    "Falcon as of 40B, mlp": (FalconForCausalLM(FalconConfig(**sizes, new_decoder_architecture=True, num_kv_heads=2)), "transformer.h.0.mlp"),
    "Qwen2-MoE, shared_expert": (Qwen2MoeForCausalLM(qwen), "model.layers.0.mlp.shared_expert"),
    "Llama 4, shared_expert": (Llama4ForCausalLM(llama), "model.layers.0.feed_forward.shared_expert"),
}
print(f"transformers {version('transformers')}\nexpected: what a hook kept of a module's output is, after the forward, what the module gives for what it received")
far = {}
for name, (model, path) in models.items():
    module, kept = model.eval().get_submodule(path), []
    handle = module.register_forward_hook(lambda module, args, out: kept.extend([args[0].clone(), out, out.clone()]))
    with torch.no_grad():
        model(torch.arange(1, 11)[None])
        handle.remove()
        received, out, copied = kept
        right = module(received)
        far[name] = [((x - right).norm() / right.norm()).item() for x in (out, copied)]
    print("seen: {}: what the hook kept is off by {:.0%} of its norm, a copy that it made by {:.0%}".format(name, *far[name]))
grown = {name for name, (kept, copied) in far.items() if kept > 0.1}
raise SystemExit(not (grown == {name for name in models if "Falcon" in name or "Llama 4" in name} and all(copied < 1e-5 for _, copied in far.values())))
PY
