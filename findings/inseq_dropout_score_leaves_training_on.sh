#!/usr/bin/env bash
# inseq's step score "mc_dropout_prob_avg" is a z-score, and it leaves the model in training: later scores, without it too, are those of dropped-out models.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==4.57.6 inseq==0.7.1
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import inseq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

torch.manual_seed(0)
words = {f"word{i}": i for i in range(40)}
plain = Tokenizer(models.WordLevel(words, unk_token="word0"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="word0", eos_token="word0", pad_token="word1")
sizes = {"n_embd": 32, "n_head": 2, "n_layer": 2, "vocab_size": 40, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
language_model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.2)).eval()
model = inseq.load_model(language_model, "saliency", tokenizer=tokenizer)
prompt, text = "word3 word4", "word3 word4 word5 word6 word7"


def scores(*names):
    came = model.attribute(prompt, text, step_scores=list(names), show_progress=False).sequence_attributions[0]
    return {name: [round(float(each), 4) for each in came.step_scores[name]] for name in names}


print(f"inseq {version('inseq')}: a GPT-2 in eval mode, probabilities of the last three words of '{text}'")
before = scores("probability")["probability"]
print(f"expected: {before}, each time; mc_dropout_prob_avg, an average of probabilities, is between 0 and 1")
average = scores("mc_dropout_prob_avg")["mc_dropout_prob_avg"]
print(f"seen: mc_dropout_prob_avg: {average}; afterwards the model's training is {language_model.training}")
after = [scores("probability")["probability"] for _ in range(2)]
print(f"seen: probability afterwards: {after[0]}, and again: {after[1]}")
outside = any(not 0 <= each <= 1 for each in average)
raise SystemExit(not (outside and language_model.training and before != after[0] != after[1]))
PY
