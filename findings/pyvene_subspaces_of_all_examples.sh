#!/usr/bin/env bash
# pyvene's interventions in the activation's own basis, given a subspace for each example: where these differ and are as long as one another, each example gets the subspaces of all.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 pyvene==0.1.8
"$python" -W ignore - 2>/dev/null <<'PY'
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO

import pyvene
import torch
from transformers import GPT2Config, GPT2LMHeadModel

WIDTH = 32
torch.manual_seed(0)
sizes = {"n_embd": WIDTH, "n_head": 2, "n_layer": 2, "vocab_size": 60, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.2)).eval()
base, source = torch.randint(60, (3, 4)), torch.randint(60, (3, 4))


kept, last = [], model.transformer.h[1]
forward = last.forward


def recorded(states, *rest, **options):
    """The last block, which keeps what block 0 gave for the last token. Not a hook: pyvene removes those."""
    kept.append(states[:, -1].clone())
    return forward(states, *rest, **options)


last.forward = recorded


def exchanged(kind, subspaces):
    """Dimensions of block 0's output at the last token that have another value, for each of three examples."""
    with redirect_stdout(StringIO()), torch.no_grad():
        config = pyvene.IntervenableConfig([{"layer": 0, "component": "block_output", "unit": "pos", "intervention": kind(embed_dim=WIDTH)}])
        model(base)
        before = kept[-1]
        pyvene.IntervenableModel(config, model=model)({"input_ids": base}, [{"input_ids": source}], {"sources->base": 3}, subspaces=subspaces)
    return [(row.abs() > 1e-4).nonzero().flatten().tolist() for row in kept[-1] - before]


own = [[0, 1], [10, 11], [20, 21]]
uneven = [[0, 1], [10], [20, 21]]
print(f"pyvene {version('pyvene')}: three examples of a batch, and subspaces to exchange for each")
print(f"expected: each example's own dimensions are exchanged: {own}")
cases = {
    "VanillaIntervention": (pyvene.VanillaIntervention, own),
    "AdditionIntervention": (pyvene.AdditionIntervention, own),
    "VanillaIntervention, one of them shorter": (pyvene.VanillaIntervention, uneven),
    "VanillaIntervention, all alike": (pyvene.VanillaIntervention, [own[0]] * 3),
}
seen = {}
for name, (kind, subspaces) in cases.items():
    seen[name] = exchanged(kind, [subspaces]), subspaces
    print(f"seen: {name}, {subspaces}: {seen[name][0]}")
union = [sum(own, [])] * 3
wrong = [name for name, (came, subspaces) in seen.items() if came != subspaces]
raise SystemExit(not (wrong == ["VanillaIntervention", "AdditionIntervention"] and all(seen[name][0] == union for name in wrong)))
PY
