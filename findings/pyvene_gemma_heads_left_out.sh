#!/usr/bin/env bash
# pyvene takes the heads of Gemma and Gemma 2 together for as wide as the residual stream: where they are wider, as in Gemma 7B and Gemma 2 9B, the last heads are never exchanged nor ablated.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 pyvene==0.1.8
"$python" -W ignore - 2>/dev/null <<'PY'
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO

import pyvene
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaConfig, GemmaForCausalLM

HEADS, HEAD = 16, 8
sizes = {"intermediate_size": 64, "num_attention_heads": HEADS, "num_key_value_heads": 8, "head_dim": HEAD, "num_hidden_layers": 1, "vocab_size": 60}
special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
torch.manual_seed(0)
models = {
    "as wide as all heads": Gemma2ForCausalLM(Gemma2Config(hidden_size=128, **sizes, **special)),
    "7 for 8 of the heads' width, as Gemma 2 9B": Gemma2ForCausalLM(Gemma2Config(hidden_size=112, **sizes, **special)),
    "3 for 4 of the heads' width, as Gemma 7B": GemmaForCausalLM(GemmaConfig(hidden_size=96, **sizes, **special)),
}


def left_out(model, kind):
    """Heads whose values at the last token, before the output projection, are still those of the base."""
    given, tokens, projection = [], torch.arange(1, 9).reshape(2, 1, 4), model.model.layers[0].self_attn.o_proj
    forward = projection.forward

    def recorded(x):
        given.append(x[0, -1].view(HEADS, HEAD).clone())
        return forward(x)

    projection.forward = recorded  # not a hook: pyvene removes those
    sources, where = ([{"input_ids": tokens[1]}], "sources->base") if kind is pyvene.VanillaIntervention else (None, "base")
    with redirect_stdout(StringIO()), torch.no_grad():
        model(tokens[0])
        config = pyvene.IntervenableConfig([{"layer": 0, "component": "attention_value_output", "unit": "pos", "intervention_type": kind}])
        pyvene.IntervenableModel(config, model=model)({"input_ids": tokens[0]}, sources, {where: 3})
    projection.forward = forward
    return [head for head in range(HEADS) if torch.equal(given[0][head], given[-1][head])]


print(f"pyvene {version('pyvene')}: attention_value_output, the values of {HEADS} heads {HEAD} wide, exchanged or set to 0 at the last token")
print("expected: no head is still what it was")
seen = {}
for name, model in models.items():
    for kind in (pyvene.VanillaIntervention, pyvene.ZeroIntervention):
        seen[name, kind.__name__] = left_out(model.eval(), kind)
        print(f"seen: residual stream {name}: {kind.__name__}: heads left as they were: {seen[name, kind.__name__]}")
none, two, four = ([seen[name, kind] for kind in ("VanillaIntervention", "ZeroIntervention")] for name in models)
raise SystemExit(not (none == [[], []] and two == [[14, 15]] * 2 and four == [[12, 13, 14, 15]] * 2))
PY
