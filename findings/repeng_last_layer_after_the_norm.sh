#!/usr/bin/env bash
# repeng reads the last layer's direction off states that went through the final norm, and adds it to that layer's output, which did not: it is another direction than that of the layer's own activations.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 repeng==0.4.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import numpy as np
import torch
from repeng import ControlVector, DatasetEntry
from sklearn.decomposition import PCA
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = list("abcdefghijklmnopqrstuvwxyz")
words = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(["_", *letters])}, unk_token="_"))
words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="_", unk_token="_")
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 27, "initializer_range": 0.2}
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
torch.nn.init.uniform_(model.model.norm.weight, 0, 3)  # as trained ones, it does not weigh all dimensions alike
generator = np.random.default_rng(0)
texts = ["".join(generator.choice(letters, 5)) for _ in range(24)]
pairs = [DatasetEntry(text + "good", text + "evil") for text in texts]
control = ControlVector.train(model, tokenizer, pairs, method="pca_center")
print(f"repeng {version('repeng')}, method pca_center\nexpected: a layer's direction is the first principal component of its outputs, each pair's mean taken off")
kept = {}
for layer, block in enumerate(model.model.layers):
    block.register_forward_hook(lambda module, args, out, layer=layer: kept.__setitem__(layer, out[:, -1]))


def outputs(texts):
    """The output of each layer at the last token, and the last one's after the final norm."""
    with torch.no_grad():
        model(**tokenizer(texts, return_tensors="pt"))
        return kept | {"normed": model.model.norm(kept[3])}


positive, negative = outputs([pair.positive for pair in pairs]), outputs([pair.negative for pair in pairs])


def cosine(states, direction):
    half = (positive[states] - negative[states]) / 2
    component = PCA(1).fit(torch.cat([half, -half]).double().numpy()).components_[0]
    return abs(float(component @ direction) / np.linalg.norm(direction))


seen = {layer: cosine(layer, direction) for layer, direction in sorted(control.directions.items())}
for layer, value in seen.items():
    print(f"seen: layer {layer}: cosine of its direction and the component of its outputs: {value:.4f}")
normed = cosine("normed", control.directions[3])
print(f"seen: layer 3: cosine of its direction and the component of its outputs after the final norm: {normed:.4f}")
raise SystemExit(not (seen[3] < 0.97 and min(seen[1], seen[2], normed) > 0.9999))
PY
