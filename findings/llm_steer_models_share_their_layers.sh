#!/usr/bin/env bash
# llm-steer keeps what it wraps in one dict for all Steer objects, by the layer's index: a second model steered there, also with coefficient 0, runs the first one's layer in the place of its own.
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
tokens = torch.arange(1, 11)[None]
print(f"llm-steer {version('llm-steer')}\nexpected: steering with a coefficient of 0 changes nothing, however many models are steered")


def logits(model):
    with torch.no_grad():
        return model(tokens).logits


def off(one, other):
    return ((one - other).norm() / other.norm()).item()


torch.manual_seed(0)
first, second = (LlamaForCausalLM(LlamaConfig(**sizes)).eval() for _ in range(2))
plain, other = logits(first), logits(second)
grafted = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
grafted.load_state_dict(second.state_dict())
grafted.model.layers[1] = first.model.layers[1]
expected = logits(grafted)
one = Steer(first, Letters())
one.add(layer_idx=1, coeff=0.0, text="love")
alone = off(logits(first), plain)
two = Steer(second, Letters())
two.add(layer_idx=0, coeff=0.0, text="love")
elsewhere = off(logits(second), other)
two.add(layer_idx=1, coeff=0.0, text="love")
moved, same = off(logits(second), other), off(logits(second), expected)
print(f"seen: the first model, layer 1 steered by 0: logits are off by {alone:.0%}\nseen: a second one, layer 0 steered by 0: off by {elsewhere:.0%}")
print(f"seen: the second one, layer 1 steered by 0: off by {moved:.0%}, and by {same:.0%} of a model that has the first one's layer 1")
print(f"seen: add was called once on the first; it lists {len(one.get_all())}")
raise SystemExit(not (alone == elsewhere == 0 and same < 1e-5 and moved > 0.5 and len(one.get_all()) == 3))
PY
