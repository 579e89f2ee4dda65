#!/usr/bin/env bash
# hidden_states shows what a hook put in a block's place, or what was there before: it depends on whether it was asked for earlier.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" - <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3}
config, tokens = LlamaConfig(vocab_size=64, **sizes), torch.arange(5, 14)[None]


@torch.no_grad()
def states(model):
    return model(tokens, output_hidden_states=True).hidden_states


def fresh(asked):
    torch.manual_seed(0)
    model = LlamaModel(config).eval()
    if asked:
        states(model)
    return model


print(f"transformers {transformers.__version__}\nexpected: the same, whether or not the model was asked for hidden states before")
largest, counts = {}, {}
for asked in (False, True):
    model = fresh(asked)
    model.layers[0].register_forward_hook(lambda block, args, output: torch.zeros_like(output))
    with torch.no_grad():
        zeros = states(model)
        blind = torch.equal(model(tokens).last_hidden_state, zeros[-1])
    largest[asked] = zeros[1].abs().max().item()
    model = fresh(asked)
    model.layers[1] = LlamaDecoderLayer(config, 1)
    counts[asked] = len(states(model))
    print(f"asked before: {asked}")
    print(f"seen: a hook puts zeros in block 0's place, hidden_states[1] has {largest[asked]:.4f} at most; later blocks read zeros: {blind}")
    print(f"seen: another block is put in block 1's place: {counts[asked]} hidden states of 3 blocks")
raise SystemExit(not (largest[False] == 0 < largest[True] and counts == {False: 4, True: 3}))
PY
