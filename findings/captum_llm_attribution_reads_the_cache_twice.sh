#!/usr/bin/env bash
# captum's LLMAttribution with transformers 5: by default it feeds the whole text again beside a cache that holds it, so from the second token of the target on all is wrong.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 captum==0.9.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
words = ["<pad>", *(f"word{i}" for i in range(39))]
plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>")
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 40}
model = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2)).eval()
prompt, target = "word3 word4 word5 word6", "word7 word8 word9"
print(f"captum {version('captum')}, transformers {version('transformers')}: '{prompt}', target '{target}', each word of the prompt ablated")


def log_probabilities(ids):
    with torch.no_grad():
        scores = model(ids[None]).logits[0].log_softmax(-1)
    return scores[3:6].gather(1, ids[4:, None])[:, 0]


ids = tokenizer(f"{prompt} {target}", return_tensors="pt").input_ids[0]
ablated = [ids.where(torch.arange(7) != place, 0) for place in range(4)]
expected = torch.stack([log_probabilities(ids) - log_probabilities(one) for one in ablated], dim=1)
inputs = TextTokenInput(prompt, tokenizer, skip_tokens=[])
error = {}
for name, options in (("by default", {}), ("use_cached_outputs=False", {"use_cached_outputs": False})):
    came = LLMAttribution(FeatureAblation(model), tokenizer).attribute(inputs, target=target, **options).token_attr
    error[name] = [float((came[i] - expected[i]).norm() / expected[i].norm()) for i in range(3)]
    print(f"{name}\n  expected: what two runs of the model differ by, whose largest is {expected.abs().max():.2f}")
    print(f"  seen: relative errors of the target's three tokens: {', '.join(f'{each:.1e}' for each in error[name])}")
first, *later = error["by default"]
raise SystemExit(not (first < 1e-3 and min(later) > 0.1 and max(error["use_cached_outputs=False"]) < 1e-3))
PY
