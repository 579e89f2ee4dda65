#!/usr/bin/env bash
# repeng's default method, pca_diff: PCA takes the mean off the differences of its pairs, which is what the pairs have in common.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==4.57.6 numpy==1.26.4 repeng==0.4.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from repeng import ControlVector, DatasetEntry
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAIRS, LAYERS = 64, [1, 2, 3]
torch.manual_seed(0)
words = ["<pad>", "good", "bad", *(f"word{i}" for i in range(60))]
plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>")
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 4, "vocab_size": 64}
model = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.05, pad_token_id=0)).eval()
contexts = [" ".join(f"word{i}" for i in row) for row in np.random.default_rng(0).integers(0, 60, (PAIRS, 5))]
pairs = [DatasetEntry(f"{context} good", f"{context} bad") for context in contexts]


def last(texts):
    with torch.no_grad():
        states = model(**tokenizer(texts, return_tensors="pt"), output_hidden_states=True).hidden_states
    return {layer: states[layer + 1][:, -1].numpy() for layer in LAYERS}


good, bad = last([pair.positive for pair in pairs]), last([pair.negative for pair in pairs])
print(f"repeng {version('repeng')}: {PAIRS} pairs of texts, equal but for the last word, 'good' or 'bad'")
print("expected: the direction of each method is about that of the mean difference, and tells which text of a pair is which")
seen = {}
for method in ("pca_diff", "pca_center"):
    directions = ControlVector.train(model, tokenizer, pairs, method=method).directions
    for layer in LAYERS:
        difference, direction = good[layer] - bad[layer], directions[layer] / np.linalg.norm(directions[layer])
        mean = difference.mean(0)
        cosine, right = float(direction @ mean / np.linalg.norm(mean)), float((difference @ direction > 0).mean())
        seen[method, layer] = cosine, right
        print(f"seen: {method}, layer {layer}: cosine with the mean difference {cosine:.2f}; right for {right:.0%} of its pairs")
lost = all(abs(seen["pca_diff", layer][0]) < 0.4 and seen["pca_diff", layer][1] < 0.9 for layer in LAYERS)
kept = all(seen["pca_center", layer][0] > 0.99 and seen["pca_center", layer][1] == 1 for layer in LAYERS)
by_default = ControlVector.train(model, tokenizer, pairs).directions[1]
named = ControlVector.train(model, tokenizer, pairs, method="pca_diff").directions[1]
raise SystemExit(not (lost and kept and np.array_equal(by_default, named)))
PY
