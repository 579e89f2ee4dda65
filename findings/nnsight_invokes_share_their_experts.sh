#!/usr/bin/env bash
# nnsight's invokes, each of which is to see its own rows: experts and routers flatten rows and tokens into one dimension, so there an invoke sees all prompts, and what it changes is changed for the others.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 nnsight==0.8.1
# nnsight reads the source of what it runs: a file, and not what came in.
cat > shown.py <<'PY'
from importlib.metadata import version

import nnsight
import torch
from nnsight import TransformersModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
plain = Tokenizer(models.WordLevel({f"word{i}": i for i in range(40)}, unk_token="word0"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="word0", pad_token="word0")
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 40}
language_model = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4, initializer_range=0.2, pad_token_id=0, eos_token_id=0)).eval()
model = TransformersModel(language_model, tokenizer=tokenizer)
block = model.model.layers[0]
first, second = "word1 word2 word3 word4 word5", "word6 word7 word8 word9 word10"
print(f"nnsight {version('nnsight')}, transformers {version('transformers')}: Mixtral, two invokes with a prompt of 5 tokens each")
print("expected: each invoke sees its own 5 tokens; the second's logits are those it has alone, whatever the first one changes")
with model.trace(second):
    alone = model.output.logits.save()
seen = {}
for name, module in (("self_attn.o_proj", block.self_attn.o_proj), ("mlp", block.mlp), ("mlp.experts", block.mlp.experts)):
    with model.trace() as tracer:
        with tracer.invoke(first):
            shape = nnsight.save(list(module.output.shape))
            module.output = module.output * 0
        with tracer.invoke(second):
            beside = model.output.logits.save()
    seen[name] = shape[:-1], (beside - alone).abs().max().item()
    print(f"seen: {name}, set to 0 in the first invoke: it sees {shape[:-1]} tokens; the second one's logits are off by up to {seen[name][1]:.1g}")
with model.trace() as tracer:
    with tracer.invoke(first):
        router = nnsight.save(list(model.model.layers[0].mlp.gate.output[0].shape))
    with tracer.invoke(second):
        beside = model.output.logits.save()
print(f"seen: mlp.gate: the first invoke sees the router's logits of {router[0]} tokens")
own = all(seen[name][0] == [1, 5] and seen[name][1] < 1e-4 for name in ("self_attn.o_proj", "mlp"))
raise SystemExit(not (own and seen["mlp.experts"][0] == [10] and seen["mlp.experts"][1] > 0.1 and router[0] == 10))
PY
"$python" -W ignore shown.py 2>/dev/null
