#!/usr/bin/env bash
# llm-steer takes a text's vector from the model as it is steered by then: of two texts at two layers, added in the other order, the later layer's vector is another.
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


sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 60, "initializer_range": 0.2}
tokens = torch.arange(1, 11)[None]
print(f"llm-steer {version('llm-steer')}\nexpected: a text's vector is of the text and the model, whichever layer's is added first")


def steered(*added):
    """Logits of a model with these (layer, text) added, and the vector of each layer."""
    torch.manual_seed(0)
    Steer.steers = {}  # one dict for all objects, so it is emptied
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    steer = Steer(model, Letters())
    for layer, text in added:
        steer.add(layer_idx=layer, coeff=1.0, text=text)
    with torch.no_grad():
        return model(tokens).logits, {layer: state.steer_vectors[0].tensor.mean(1) for layer, state in steer.steers.items()}


def off(one, other):
    return ((one - other).norm() / other.norm()).item()


early, late = (0, "anger"), (2, "love")
alone = steered(late)[1][2]
(up, vectors_up), (down, vectors_down) = steered(early, late), steered(late, early)
seen = [off(vectors[2], alone) for vectors in (vectors_down, vectors_up)]
print(f"seen: layer 2's vector is off by {seen[0]:.0%} from its own alone if it is added first, by {seen[1]:.0%} if it is added after layer 0's")
print(f"seen: logits of the two orders are off by {off(up, down):.0%} from one another; layer 0's vectors by {off(vectors_up[0], vectors_down[0]):.0%}")
raise SystemExit(not (seen[0] == 0 and seen[1] > 0.1 and off(up, down) > 0.05 and vectors_up[0].equal(vectors_down[0])))
PY
