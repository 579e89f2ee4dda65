#!/usr/bin/env bash
# PEFT's Lily averages its router over all tokens of a call: in a causal model a token's logits depend on later tokens, on padding and on the other rows, and with a cache they are others.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from peft import LilyConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60, "initializer_range": 0.2}
text, other = torch.arange(1, 11)[None], torch.arange(31, 41)[None]
padding, ones = torch.zeros_like(text), torch.ones_like(text)
print(f"peft {version('peft')}\nexpected: as without an adapter or with LoRA, a token's logits depend on it and on those before it in its row")


def seen_of(model):
    """How far the logits of `text` are off from those of `text` alone, in four surroundings."""

    def logits(tokens, mask=None):
        return model(input_ids=tokens, attention_mask=mask).logits

    with torch.no_grad():
        model.eval()
        wanted = logits(text)
        cache, steps = None, []
        for token in text.T:
            output = model(input_ids=token[None], past_key_values=cache, use_cache=True)
            cache, _ = output.past_key_values, steps.append(output.logits)
        found = {
            "before other tokens": logits(torch.cat([text, other], 1))[:, :10],
            "beside another row": logits(torch.cat([text, other]))[:1],
            "padded on the right": logits(torch.cat([text, padding], 1), torch.cat([ones, padding], 1))[:, :10],
            "token by token, with a cache": torch.cat(steps, 1),
        }
    return {name: ((values - wanted).norm() / wanted.norm()).item() for name, values in found.items()}


seen = {}
for name, config in (("no adapter", None), ("LoRA", LoraConfig(r=4, target_modules=["q_proj", "v_proj"])), ("Lily", LilyConfig(r=4, num_B=2, target_modules=["q_proj", "v_proj"]))):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    if config is not None:
        model = get_peft_model(model, config)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data += 0.1 * torch.randn_like(weight)
    seen[name] = seen_of(model)
    print(f"seen: {name}: logits of a text are off by " + ", ".join(f"{off:.1%} {where}" for where, off in seen[name].items()))
right = all(max(found.values()) < 1e-4 for name, found in seen.items() if name != "Lily")
raise SystemExit(not (right and min(seen["Lily"].values()) > 0.005))
PY
