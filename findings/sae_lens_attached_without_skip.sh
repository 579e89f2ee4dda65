#!/usr/bin/env bash
# SAELens: a skip transcoder attached to a model runs without its skip connection, a temporal SAE without what it predicts.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sae-lens==6.54.12
"$python" -W ignore - 2>/dev/null <<'PY'
import sae_lens
import torch
from sae_lens import HookedSAETransformer
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig, SkipTranscoder, SkipTranscoderConfig, Transcoder, TranscoderConfig,
)  # fmt: skip
from transformer_lens import HookedTransformerConfig

D, LATENTS = 16, 64
torch.manual_seed(0)
model = HookedSAETransformer(HookedTransformerConfig(n_layers=2, d_model=D, n_ctx=32, d_head=8, n_heads=2, d_vocab=50, act_fn="gelu", seed=0))
tokens = torch.arange(5, 14)[None]
kinds = [Transcoder, SkipTranscoder, JumpReLUSkipTranscoder, TemporalSAE]
sizes = {"d_in": D, "d_sae": LATENTS}
transcoder = {**sizes, "d_out": D, "apply_b_dec_to_input": False}
configs = [
    TranscoderConfig(**transcoder), SkipTranscoderConfig(**transcoder), JumpReLUSkipTranscoderConfig(**transcoder),
    TemporalSAEConfig(**sizes, n_heads=1, bottleneck_factor=16, kval_topk=4),
]  # fmt: skip
print(f"sae-lens {sae_lens.__version__}\nexpected: what a model with it attached goes on with is what it makes of the same activations by itself")
off = {}
for kind, config in zip(kinds, configs):
    one = kind(config)
    if hasattr(one, "W_skip"):
        torch.nn.init.normal_(one.W_skip, std=0.1)
    inside = kind is not TemporalSAE
    one.cfg.metadata.hook_name = "blocks.0.mlp.hook_in" if inside else "blocks.0.hook_resid_post"
    one.cfg.metadata.hook_name_out = at = "blocks.0.hook_mlp_out" if inside else "blocks.0.hook_resid_post"
    with torch.no_grad():
        cache = model.run_with_cache(tokens)[1]
        alone = one(cache[one.cfg.metadata.hook_name])
        attached = model.run_with_cache_with_saes(tokens, saes=[one])[1][f"{at}.hook_sae_output"]
    off[kind.__name__] = ((attached - alone).norm() / alone.norm()).item()
    print(f"seen: {kind.__name__}: attached, its output is off by {off[kind.__name__]:.1%}")
raise SystemExit(not (off.pop("Transcoder") < 1e-5 and min(off.values()) > 0.1))
PY
