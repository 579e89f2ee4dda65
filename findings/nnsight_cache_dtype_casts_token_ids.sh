#!/usr/bin/env bash
# nnsight's tracer.cache with a dtype casts whatever it keeps, token ids and positions too: in bfloat16 those above 256 are rounded, so the tokens are others.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 nnsight==0.8.1
# nnsight reads the source of what it runs: a file, and not what came in.
cat > shown.py <<'PY'
from importlib.metadata import version

import torch
from nnsight import TransformersModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

torch.manual_seed(0)
plain = Tokenizer(models.WordLevel({f"word{i}": i for i in range(5000)}, unk_token="word0"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="word0", pad_token="word0")
sizes = {"n_embd": 32, "n_head": 2, "n_layer": 2, "vocab_size": 5000, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
model = TransformersModel(GPT2LMHeadModel(GPT2Config(**sizes)).eval(), tokenizer=tokenizer)
prompt, embedding = "word4001 word4002 word301 word12", "model.transformer.wte"
print(f"nnsight {version('nnsight')}: the inputs and outputs of all modules are kept, for the prompt '{prompt}'")
print("expected: with dtype=torch.bfloat16 activations are bfloat16, and the embedding's input is the prompt's ids")
seen = {}
for dtype in (None, torch.bfloat16):
    with model.trace(prompt) as tracer:
        cache = tracer.cache(include_inputs=True, dtype=dtype)
    ids, activation = cache[embedding].input, cache["model.transformer.h.0"].output
    seen[dtype] = ids
    print(f"seen: dtype={dtype}: activations are {activation.dtype}; the embedding's input is {ids[0].tolist()}, {ids.dtype}: '{tokenizer.decode(ids[0].long())}'")
right = [4001, 4002, 301, 12]
raise SystemExit(not (seen[None][0].tolist() == right and seen[torch.bfloat16][0].tolist() == [4000, 4000, 300, 12] and seen[torch.bfloat16].dtype == torch.bfloat16))
PY
"$python" -W ignore shown.py 2>/dev/null
