#!/usr/bin/env bash
# transformers' StaticCache: the length that get_seq_length gives is a tensor that goes on counting; Inkling's attention keeps one over an update, so its cached steps have wrong positions.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import DynamicCache, InklingForCausalLM, InklingTextConfig, LlamaConfig, LlamaForCausalLM, StaticCache

FIRST = 12
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
inkling = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "d_rel": 8, "rel_extent": 64, "moe_intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2}
torch.manual_seed(0)
models = {"llama": LlamaForCausalLM(LlamaConfig(**sizes)), "inkling": InklingForCausalLM(InklingTextConfig(**sizes, **inkling, layer_types=["hybrid"] * 2))}
caches = {"DynamicCache": DynamicCache, "StaticCache": lambda config: StaticCache(config=config, max_cache_len=64)}
tokens = torch.randint(4, 60, (1, 2 * FIRST), generator=torch.Generator().manual_seed(0))
print(f"transformers {transformers.__version__}, a text of {tokens.shape[1]} tokens, the first {FIRST} at once and then one by one")
print(f"expected: the length that was read after {FIRST} tokens stays {FIRST}; logits are those of the whole text without a cache")
seen = {}
for name, model in models.items():
    with torch.no_grad():
        for weight in model.eval().parameters():
            if weight.ndim > 1:
                weight *= 5
            elif not weight.any():
                weight.normal_(0, 0.2)
        whole = model(tokens, use_cache=False).logits
        for cache_name, make in caches.items():
            cache = make(config=model.config)
            logits = [model(tokens[:, :FIRST], past_key_values=cache, use_cache=True).logits]
            length = cache.get_seq_length()
            logits += [model(tokens[:, at : at + 1], past_key_values=cache, use_cache=True).logits for at in range(FIRST, 2 * FIRST)]
            off = (torch.cat(logits, 1) - whole).norm(dim=-1)[0] / whole.norm(dim=-1)[0]
            seen[name, cache_name] = int(length), off[:FIRST].max().item(), off[FIRST:].max().item()
            print(f"seen: {name}, {cache_name}: the length read after {FIRST} tokens is {length} at the end; logits are off by {seen[name, cache_name][1]:.1%} in the first part, by up to {seen[name, cache_name][2]:.1%} after it")
exact = all(first < 1e-4 and (rest < 1e-4 or key == ("inkling", "StaticCache")) for key, (_, first, rest) in seen.items())
alive = {key[1]: length for key, (length, _, _) in seen.items()} == {"DynamicCache": FIRST, "StaticCache": 2 * FIRST}
raise SystemExit(not (exact and alive and seen["inkling", "StaticCache"][2] > 0.01))
PY
