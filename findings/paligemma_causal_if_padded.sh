#!/usr/bin/env bash
# PaliGemma on tokens alone, in sdpa: no token is kept from later ones, until a row of the batch is padded; then all rows are causal.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import torch
import transformers
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
config = PaliGemmaConfig(
    text_config={"model_type": "gemma", "vocab_size": 64, "num_key_value_heads": 4, "head_dim": 8, **sizes},
    vision_config={"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, **sizes},
    image_token_index=63, vocab_size=64, projection_dim=32,
)  # fmt: skip
torch.manual_seed(0)
weights = PaliGemmaForConditionalGeneration(config).state_dict()
weights = {name: 5 * weight if weight.ndim == 2 else weight for name, weight in weights.items()}
tokens = torch.randint(4, 60, (2, 12), generator=torch.Generator().manual_seed(0))
other = tokens.clone()
other[0, -1] = (tokens[0, -1] + 1) % 60
print(f"transformers {transformers.__version__}\nexpected: row 0 is computed in one way, whatever row 1 is, and in eager as in sdpa")
seen = {}
for attention in ("sdpa", "eager"):
    model = PaliGemmaForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    model.load_state_dict(weights)
    for padded in (False, True):
        mask = torch.ones_like(tokens)
        mask[1, 9:] = 1 - padded
        with torch.no_grad():
            states = [model.model(input_ids=ids, attention_mask=mask).last_hidden_state[0, :-1] for ids in (tokens, other)]
        moved = ((states[1] - states[0]).norm() / states[0].norm()).item()
        seen[attention, padded] = moved > 1e-3
        print(f"seen: {attention}, row 1 padded: {padded}: another last token in row 0 moves the states before it by {moved:.1%}")
of_sdpa = [seen["sdpa", padded] for padded in (False, True)]
raise SystemExit(not (of_sdpa == [True, False] and not seen["eager", False] and not seen["eager", True]))
PY
