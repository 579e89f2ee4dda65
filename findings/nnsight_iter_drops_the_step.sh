#!/usr/bin/env bash
# nnsight's tracer.iter takes slices and drops their step: iter[::2] is every step of a generation, so what is to change each second token changes all; iter[:-1] is none.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 nnsight==0.8.1
# nnsight reads the source of what it runs: a file, and not what came in.
cat > shown.py <<'PY'
from importlib.metadata import version

import nnsight
import torch
from nnsight import TransformersModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

TOKENS = 6
torch.manual_seed(0)
plain = Tokenizer(models.WordLevel({f"word{i}": i for i in range(40)}, unk_token="word0"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="word0", pad_token="word0")
sizes = {"n_embd": 32, "n_head": 2, "n_layer": 2, "vocab_size": 40, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
model = TransformersModel(GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.5, tie_word_embeddings=False)).eval(), tokenizer=tokenizer)
print(f"nnsight {version('nnsight')}: {TOKENS} tokens are generated, and in the steps of tracer.iter[...] the logits say word7")
print("expected: the steps that a list of them has under the same slice, as [0, 2, 4] for [:6:2]; word7 in those places")


def steered(selected):
    """Steps that the loop ran, and the places of the generated word7."""
    with model.generate("word1 word2", max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False) as tracer:
        steps = nnsight.save([])
        for step in tracer.iter[selected]:
            steps.append(step)
            model.lm_head.output[..., 7] = 1e4
        ids = tracer.result.save()
    return list(steps), [place for place, token in enumerate(ids[0, -TOKENS:].tolist()) if token == 7]


seen = {}
for text, selected in (("[1:4]", slice(1, 4)), ("[[0, 2, 4]]", [0, 2, 4]), ("[:6:2]", slice(0, 6, 2)), ("[:-1]", slice(None, -1))):
    seen[text] = steered(selected)
    right = selected if isinstance(selected, list) else list(range(TOKENS))[selected]
    print(f"seen: iter{text}: steps {seen[text][0]}, word7 at {seen[text][1]}; a list has {right}")
right = seen["[1:4]"] == ([1, 2, 3], [1, 2, 3]) and seen["[[0, 2, 4]]"] == ([0, 2, 4], [0, 2, 4])
raise SystemExit(not (right and seen["[:6:2]"] == (list(range(6)), list(range(6))) and seen["[:-1]"] == ([], [])))
PY
"$python" -W ignore shown.py 2>/dev/null
