#!/usr/bin/env bash
# RWKV: one token for each row of a batch comes out as a token for each pair of rows, and generate writes what no row alone would get.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import FalconMambaConfig, FalconMambaForCausalLM, MambaConfig, MambaForCausalLM, RwkvConfig, RwkvForCausalLM

ROWS, NEW = 3, 8
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
torch.manual_seed(0)
models = {
    "mamba": MambaForCausalLM(MambaConfig(**sizes)),
    "falcon_mamba": FalconMambaForCausalLM(FalconMambaConfig(**sizes)),
    "rwkv": RwkvForCausalLM(RwkvConfig(**sizes)),
}
tokens = torch.randint(4, 60, (ROWS, 6), generator=torch.Generator().manual_seed(0))
options = {"max_new_tokens": NEW, "do_sample": False}
print(f"transformers {transformers.__version__}, {ROWS} rows")
print(f"expected: one token of each makes logits of ({ROWS}, 1); what is generated for a row is the same in a batch and alone")
seen = {}
with torch.no_grad():
    for name, model in models.items():
        for parameter in model.eval().parameters():
            if parameter.ndim > 1:
                parameter *= 6
        shape = tuple(model(tokens[:, :1]).logits.shape[:2])
        alone = torch.cat([model.generate(row[None], **options) for row in tokens])
        batch = model.generate(tokens, **options)
        seen[name] = shape, (batch == alone).all(1).tolist()
        print(f"seen: {name}: logits of {shape}; rows generated as alone: {sum(seen[name][1])} of {ROWS}")
right = (ROWS, 1), [True] * ROWS
raise SystemExit(not (seen["mamba"] == seen["falcon_mamba"] == right and seen["rwkv"][0] == (ROWS, ROWS) and not all(seen["rwkv"][1])))
PY
