#!/usr/bin/env bash
# Moshi's sliding_window is in its cache and not in its mask: one forward hears the whole text, a forward after a cache the window, so states depend on how a text is cut.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import MistralConfig, MistralModel, MoshiConfig, MoshiModel

WINDOW, LENGTH = 4, 16
sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 1, "vocab_size": 64, "sliding_window": WINDOW}
torch.manual_seed(0)
models = {
    "mistral": MistralModel(MistralConfig(**sizes, intermediate_size=48)),
    "moshi": MoshiModel(MoshiConfig(**sizes, ffn_dim=48)),
}
tokens = torch.randint(4, 60, (1, LENGTH), generator=torch.Generator().manual_seed(0))
print(f"transformers {transformers.__version__}, one layer, sliding_window={WINDOW}\nexpected: of {LENGTH} tokens the last hears {WINDOW}, itself among them, however the text is cut, as Mistral's")


def last(model, tokens, first):
    """State of the last token: `first` tokens in one forward, and then one for each."""
    cache, states = None, None
    for part in (tokens[:, :first], *(tokens[:, i : i + 1] for i in range(first, LENGTH))):
        output = model(part, past_key_values=cache, use_cache=True)
        cache, states = output.past_key_values, output.last_hidden_state
    return states[0, -1]


seen = {}
with torch.no_grad():
    for name, model in models.items():
        for parameter in model.eval().parameters():
            if parameter.ndim > 1:
                parameter *= 6
        whole = last(model, tokens, LENGTH)
        for first in (LENGTH, LENGTH - 4):
            state = last(model, tokens, first)
            others = [torch.cat([tokens[:, :i], tokens[:, i : i + 1] % 50 + 5, tokens[:, i + 1 :]], 1) for i in range(LENGTH)]
            heard = sum(not torch.allclose(last(model, other, first), state, atol=1e-6) for other in others)
            seen[name, first] = heard
            way = "one forward" if first == LENGTH else f"{first} tokens, then one at a time"
            print(f"seen: {name}: {way}: the last token hears {heard}; off the state of one forward by {((state - whole).norm() / whole.norm()).item():.1%}")
raise SystemExit(list(seen.values()) != [WINDOW, WINDOW, LENGTH, WINDOW])
PY
