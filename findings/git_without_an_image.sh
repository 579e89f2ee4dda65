#!/usr/bin/env bash
# GIT given tokens alone: it leaves room for an image that is not there, so a loss is of other tokens or an error, and padding shifts a cache's mask.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import torch.nn.functional as F
import transformers
from transformers import GitConfig, GitForCausalLM

PAD, LENGTH = 3, 12
vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 8, "patch_size": 4}
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
torch.manual_seed(0)
model = GitForCausalLM(GitConfig(vision_config=vision, **sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)).eval()
tokens = torch.randint(4, 60, (2, LENGTH), generator=torch.Generator().manual_seed(0))
print(f"transformers {transformers.__version__}")
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter *= 6
    logits = model(tokens).logits
    right = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()
    print(f"expected: a loss of {right:.4f}, that of each next token")
    try:
        loss = model(tokens, labels=tokens).loss.item()
        print(f"seen: a loss of {loss:.4f}")
    except ValueError as error:
        loss = None
        print(f"seen: ValueError: {error}")
    mask = torch.ones_like(tokens)
    mask[0, :PAD] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    whole = model(tokens, attention_mask=mask, position_ids=places).logits[:, -1]
    cache = model(tokens[:, :-1], attention_mask=mask[:, :-1], position_ids=places[:, :-1], use_cache=True).past_key_values
    last = model(tokens[:, -1:], attention_mask=mask, position_ids=places[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
off = [((last[row] - whole[row]).norm() / whole[row].norm()).item() for row in (0, 1)]
print("expected: the last token's logits after a cache are those of one forward")
print(f"seen: of a row padded with {PAD} they are off by {off[0]:.1%}, of one without padding by {off[1]:.1%}")
raise SystemExit(not (loss is None and off[0] > 0.01 and off[1] < 1e-4))
PY
