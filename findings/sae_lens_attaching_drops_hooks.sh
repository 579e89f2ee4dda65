#!/usr/bin/env bash
# SAELens: one run with an SAE attached takes the hooks away that were at its hook point, permanent ones too, and for good.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sae-lens==6.54.12
"$python" -W ignore - 2>/dev/null <<'PY'
import sae_lens
import torch
from sae_lens import HookedSAETransformer, StandardSAE, StandardSAEConfig
from sae_lens.saes.transcoder import Transcoder, TranscoderConfig
from transformer_lens import HookedTransformerConfig

D = 16
model = HookedSAETransformer(HookedTransformerConfig(n_layers=2, d_model=D, n_ctx=32, d_head=8, n_heads=2, d_vocab=50, act_fn="gelu", seed=0))
tokens = torch.arange(5, 14)[None]
block, into, out = "blocks.0.hook_resid_post", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
sae = StandardSAE(StandardSAEConfig(d_in=D, d_sae=32))
sae.cfg.metadata.hook_name = block
transcoder = Transcoder(TranscoderConfig(d_in=D, d_sae=32, d_out=D, apply_b_dec_to_input=False))
transcoder.cfg.metadata.hook_name, transcoder.cfg.metadata.hook_name_out = into, out
calls = dict.fromkeys([block, into, out, "blocks.1.hook_resid_post"], 0)


def count(value, hook):
    calls[hook.name] += 1


for name in calls:
    model.add_hook(name, count, is_permanent=True)


def called():
    before = dict(calls)
    model(tokens)
    return {name: calls[name] - before[name] for name in calls}


print(f"sae-lens {sae_lens.__version__}\nexpected: after run_with_saes the model is as before, its hooks too: each is called once by a forward")
before = called()
model.run_with_saes(tokens, saes=[sae, transcoder])
after = called()
for name in calls:
    print(f"seen: the hook at {name}: called {before[name]} time before, {after[name]} after")
raise SystemExit(not (set(before.values()) == {1} and list(after.values()) == [0, 0, 0, 1]))
PY
