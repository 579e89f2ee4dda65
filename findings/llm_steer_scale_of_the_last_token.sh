#!/usr/bin/env bash
# llm-steer scales what it adds to every token by the last token's activation: a token's steered logits depend on the text after it and on padding, and those with a cache are others.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 llm-steer==2.0.1
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from llm_steer import Steer
from transformers import LlamaConfig, LlamaForCausalLM


class Letters:
    def encode(self, text, **options):
        return [ord(letter) % 60 for letter in text]


sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60, "initializer_range": 0.2}
text = torch.arange(1, 11)[None]
print(f"llm-steer {version('llm-steer')}\nexpected: a causal model stays one: a token's logits depend on what is before it, whatever follows, with padding, and with a cache")
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
model.model.embed_tokens.weight.data *= torch.linspace(0.2, 3, 60)[:, None]  # as in trained models, some tokens' states are larger


def logits(tokens, **options):
    with torch.no_grad():
        return model(tokens, **options)


def off(one, other):
    return ((one - other).norm() / other.norm()).item()


def comparisons():
    """The last token's logits: with other tokens after it, padded on the right, and after a cache."""
    whole = logits(text).logits[:, -1]
    longer = logits(torch.cat([text, torch.full((1, 1), 50)], 1)).logits[:, -2]
    mask = torch.ones(1, 14, dtype=torch.long)
    mask[:, 10:] = 0
    padded = logits(torch.cat([text, torch.zeros(1, 4, dtype=torch.long)], 1), attention_mask=mask).logits[:, 9]
    before = logits(text[:, :5], use_cache=True).past_key_values
    cached = logits(text[:, 5:], past_key_values=before).logits[:, -1]
    return [off(other, whole) for other in (longer, padded, cached)]


seen = {"not steered": comparisons()}
steer = Steer(model, Letters())
steer.add(layer_idx=0, coeff=0.7, text="love")
seen["steered"] = comparisons()
for name, values in seen.items():
    print("seen: {}: the tenth token's logits are off by {:.0%} if one follows, by {:.0%} if padded on the right, by {:.0%} if five tokens are in a cache".format(name, *values))
raise SystemExit(not (max(seen["not steered"]) < 1e-4 and min(seen["steered"]) > 0.03))
PY
