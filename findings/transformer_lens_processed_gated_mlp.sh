#!/usr/bin/env bash
# TransformerLens: process_weights_() changes what a model computes if LayerNorm is before a gated MLP, or if logits are soft-capped.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 transformer-lens==3.9.0
"$python" -W ignore - 2>/dev/null <<'PY'
import copy
from importlib.metadata import version

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

sizes = {"n_layers": 2, "d_model": 16, "n_ctx": 16, "d_head": 4, "n_heads": 4, "d_vocab": 50, "d_mlp": 32, "act_fn": "gelu", "device": "cpu"}
kinds = {
    "LayerNorm, plain MLP": {"normalization_type": "LN"},
    "RMSNorm, gated MLP": {"normalization_type": "RMS", "gated_mlp": True},
    "LayerNorm, gated MLP": {"normalization_type": "LN", "gated_mlp": True},
    "RMSNorm, soft-capped logits": {"normalization_type": "RMS", "output_logits_soft_cap": 3.0},
}
tokens = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(0))
print(f"transformer-lens {version('transformer-lens')}\nexpected: folding and centring change weights, and no log-probability")
off = {}
for kind, options in kinds.items():
    model = HookedTransformer(HookedTransformerConfig(**sizes, **options)).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
        processed = copy.deepcopy(model)
        processed.process_weights_()
        before, after = (each(tokens).log_softmax(-1) for each in (model, processed))
    off[kind] = (after - before).abs().max().item()
    print(f"seen: {kind}: log-probabilities move by up to {off[kind]:.1e}")
right, wrong = list(off.values())[:2], list(off.values())[2:]
raise SystemExit(not (max(right) < 1e-4 and min(wrong) > 1e-3))
PY
