#!/usr/bin/env bash
# Falcon, by default in sdpa: with output_attentions a token attends to later ones, and logits and hidden states are others.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import torch
import transformers
from transformers import FalconConfig, FalconForCausalLM

torch.manual_seed(0)
tokens = torch.randint(4, 60, (1, 12))
print(f"transformers {transformers.__version__}\nexpected: asking for attentions changes nothing, and no token attends to a later one")
later, moved = {}, {}
for alibi in (False, True):
    for attention in ("sdpa", "eager"):
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "alibi": alibi}
        model = FalconForCausalLM._from_config(FalconConfig(**sizes), attn_implementation=attention).eval()
        with torch.no_grad():
            plain, asked = model(tokens).logits, model(tokens, output_attentions=True)
        kind = f"{attention}, alibi {alibi}"
        moved[kind] = ((asked.logits - plain).norm() / plain.norm()).item()
        later[kind] = asked.attentions[0].triu(1).sum(-1)[..., 0].mean().item()
        print(f"seen: {kind}: the first token's attention to later ones {later[kind]:.2f}, logits move by {moved[kind]:.1%}")
eager = [later[kind] == 0 and moved[kind] < 1e-5 for kind in later if "eager" in kind]
rotary, alibi = "sdpa, alibi False", "sdpa, alibi True"
raise SystemExit(not (all(eager) and later[rotary] > 0.5 and moved[rotary] > 0.01 and later[alibi] == 0 < 0.01 < moved[alibi]))
PY
