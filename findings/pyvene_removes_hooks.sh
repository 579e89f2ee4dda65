#!/usr/bin/env bash
# pyvene: one call of an IntervenableModel removes every hook in the model, the caller's and those by which transformers gets hidden states and attentions, so from then on these are empty tuples.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 pyvene==0.1.8
"$python" -W ignore - 2>/dev/null <<'PY'
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO

import pyvene
import torch
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
sizes = {"n_embd": 32, "n_head": 2, "n_layer": 2, "vocab_size": 60, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
model = GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation="eager")).eval()
tokens, calls = torch.arange(1, 5)[None], []
model.transformer.h[1].register_forward_hook(lambda module, args, out: calls.append(1))


def seen(when):
    """Numbers of hidden states and attentions of a plain forward, and of calls of a hook that was there from the start."""
    before = len(calls)
    with torch.no_grad():
        out = model(tokens, output_hidden_states=True, output_attentions=True)
    numbers = len(out.hidden_states), len(out.attentions), len(calls) - before
    print("seen: {}: {} hidden states, {} attentions, {} call of the hook".format(when, *numbers))
    return numbers


print(f"pyvene {version('pyvene')}, transformers {version('transformers')}: plain forwards of a GPT-2 of 2 blocks, with a hook of the caller's")
print("expected: 3 hidden states, 2 attentions and 1 call of the hook, each time")
first = seen("at first")
with redirect_stdout(StringIO()):
    config = pyvene.IntervenableConfig([{"layer": 0, "component": "block_output", "unit": "pos", "intervention_type": pyvene.CollectIntervention}])
    collecting = pyvene.IntervenableModel(config, model=model)
made = seen("once an IntervenableModel was made, which collects an activation")
with torch.no_grad():
    collecting({"input_ids": tokens}, unit_locations={"base": 3})
used = seen("once it was called")
raise SystemExit(not (first == made == (3, 2, 1) and used == (0, 0, 0)))
PY
