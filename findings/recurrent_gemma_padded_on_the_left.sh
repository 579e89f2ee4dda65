#!/usr/bin/env bash
# RecurrentGemma padded on the left, with a right mask and positions: its convolution runs over what is masked, so a text's states depend on what that is; Mamba 2's and LFM2's do not.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import (
    FalconH1Config, FalconH1Model, Lfm2Config, Lfm2Model, Mamba2Config, Mamba2Model, RecurrentGemmaConfig, RecurrentGemmaModel,
)  # fmt: skip

PADS = 5
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "pad_token_id": 0}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
griffin = {"num_attention_heads": 4, "lru_width": 32, "intermediate_size": 96, "block_types": ["recurrent", "attention"], "head_dim": 8}
torch.manual_seed(0)
models = {
    "mamba2": Mamba2Model(Mamba2Config(**sizes, num_heads=4, head_dim=16, n_groups=2)),
    "falcon_h1": FalconH1Model(FalconH1Config(**sizes, **heads, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_ssm=64)),
    "lfm2": Lfm2Model(Lfm2Config(**sizes, **heads, layer_types=["conv", "full_attention"])),
    "recurrent_gemma": RecurrentGemmaModel(RecurrentGemmaConfig(**sizes, **griffin)),
}
tokens = torch.randint(4, 60, (1, 12), generator=torch.Generator().manual_seed(0))
mask = torch.cat([torch.zeros(1, PADS, dtype=torch.long), torch.ones_like(tokens)], 1)
positions = (mask.cumsum(1) - 1).clamp(min=0)
print(f"transformers {transformers.__version__}\nexpected: the states of {tokens.shape[1]} tokens are the same alone and after {PADS} that are masked")


def off(states, from_):
    return ((states - from_).norm() / from_.norm()).item()


seen = {}
with torch.no_grad():
    for name, model in models.items():
        for parameter in model.eval().parameters():
            if parameter.ndim > 1:
                parameter *= 6
        model.get_input_embeddings().weight[0].normal_()  # the pad token's, which a new model has at 0
        options = {} if name == "mamba2" else {"position_ids": positions}
        alone = model(tokens, use_cache=False).last_hidden_state
        after = [
            model(torch.cat([torch.full((1, PADS), pad), tokens], 1), attention_mask=mask, use_cache=False, **options).last_hidden_state[:, PADS:]
            for pad in (0, 9)
        ]
        seen[name] = off(after[0], alone), off(after[1], after[0])
        print(f"seen: {name}: after {PADS} pad tokens its states are off by {seen[name][0]:.1%}; other masked tokens move them by {seen[name][1]:.1%}")
leaks = seen.pop("recurrent_gemma")
raise SystemExit(not (min(leaks) > 0.05 and all(max(value) < 1e-4 for value in seen.values())))
PY
