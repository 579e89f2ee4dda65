#!/usr/bin/env bash
# ConvBERT, Nystromformer, YOSO: with a right attention mask, a row's own tokens still change with what it is padded with.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import (
    BertConfig, BertModel, ConvBertConfig, ConvBertModel, ElectraConfig, ElectraModel, NystromformerConfig, NystromformerModel,
    YosoConfig, YosoModel,
)  # fmt: skip

LENGTH, REAL = 12, 8
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64}
torch.manual_seed(0)
models = {
    "bert": BertModel(BertConfig(**sizes)),
    "electra": ElectraModel(ElectraConfig(**sizes, embedding_size=32)),
    "convbert": ConvBertModel(ConvBertConfig(**sizes, embedding_size=32)),
    "nystromformer": NystromformerModel(NystromformerConfig(**sizes)),
    "yoso": YosoModel(YosoConfig(**sizes, use_expectation=True)),
}
tokens = torch.randint(4, 60, (1, LENGTH), generator=torch.Generator().manual_seed(0))
mask = torch.ones_like(tokens)
mask[:, REAL:] = 0
pads, others = tokens.masked_fill(mask == 0, 0), tokens.masked_fill(mask == 0, 61)
print(f"transformers {transformers.__version__}\nexpected: the states of {REAL} tokens are the same alone and before {LENGTH - REAL} that are masked, whatever those are")


def off(states, from_):
    return ((states - from_).norm() / from_.norm()).item()


seen = {}
for name, model in models.items():
    with torch.no_grad():
        for parameter in model.eval().parameters():
            if parameter.ndim > 1:
                parameter *= 6
        alone = model(tokens[:, :REAL]).last_hidden_state
        padded, moved = (model(ids, attention_mask=mask).last_hidden_state[:, :REAL] for ids in (pads, others))
    seen[name] = off(padded, alone), off(moved, padded)
    print(f"seen: {name}: padded, its tokens' states are off by {seen[name][0]:.1%}; other masked tokens move them by {seen[name][1]:.1%}")
right = all(each < 1e-4 for name in ("bert", "electra") for each in seen[name])
raise SystemExit(not (right and all(min(seen[name]) > 0.01 for name in ("convbert", "nystromformer", "yoso"))))
PY
