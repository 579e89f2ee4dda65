#!/usr/bin/env bash
# Mamba, Mamba2, FalconMamba, RWKV: hidden_states[0] is block 0's output and not the embedding, and yet there are one more than blocks.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import torch
import transformers
from transformers import (
    FalconMambaConfig, FalconMambaModel, LlamaConfig, LlamaModel, Mamba2Config, Mamba2Model, MambaConfig, MambaModel,
    RwkvConfig, RwkvModel,
)  # fmt: skip

torch.manual_seed(0)
BLOCKS, tokens = 3, torch.arange(5, 14)[None]
sizes = {"hidden_size": 32, "num_hidden_layers": BLOCKS, "vocab_size": 64}
models = {
    "llama": LlamaModel(LlamaConfig(**sizes, intermediate_size=48, num_attention_heads=4)),
    "mamba": MambaModel(MambaConfig(**sizes)),
    "mamba2": Mamba2Model(Mamba2Config(**sizes, num_heads=4, head_dim=16, n_groups=2)),
    "falcon_mamba": FalconMambaModel(FalconMambaConfig(**sizes)),
    "rwkv": RwkvModel(RwkvConfig(**sizes)),
}
print(f"transformers {transformers.__version__}\nexpected: hidden_states[i + 1] is the output of block i")
seen = {}
for name, model in models.items():
    outputs: list[torch.Tensor] = []
    for block in model.eval().blocks if name == "rwkv" else model.layers:
        block.register_forward_hook(lambda _, args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True, use_cache=False).hidden_states
    seen[name] = [next((i for i, state in enumerate(states) if torch.equal(state, out)), None) for out in outputs]
    print(f"seen: {name}: {len(states)} hidden states; the outputs of its {BLOCKS} blocks are those with the numbers {seen[name]}")
early = [0, 1, 2]
raise SystemExit(seen != {"llama": [1, 2, None], "mamba": early, "mamba2": early, "falcon_mamba": early, "rwkv": early})
PY
