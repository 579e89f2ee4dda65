#!/usr/bin/env bash
# dialz' visualize_activation shows beside each token the score of the next one, and 0 beside the last; get_activation_score has them at their own tokens.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==4.57.6 ipython==9.18.1 dialz==1.1.4
"$python" -W ignore - <<'PY'
import re
from importlib.metadata import version

import numpy as np
import torch
from dialz import SteeringModel, SteeringVector, get_activation_score, visualize_activation
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS, WIDTH = ["red", "blue", "seven", "green", "black", "white"], 32
torch.manual_seed(0)
config = LlamaConfig(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, vocab_size=8)
LlamaForCausalLM(config).save_pretrained("model")
words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained("model")
model = SteeringModel("model", [1])
# The direction in which "seven" has its embedding: after one block of a model with random weights its token still has it most.
direction = model.model.get_input_embeddings().weight[2 + WORDS.index("seven")].detach().float().numpy()
vector = SteeringVector(model_type="llama", directions={1: 100 * direction / np.linalg.norm(direction)})
text = " ".join(WORDS)
_, _, (scores,) = get_activation_score(text, model, vector)
shown = [float(x) for x in re.findall(r"\((-?[\d.]+)\)", visualize_activation(text, model, vector, show_score=True))]
print(f"dialz {version('dialz')}: a text of {len(WORDS)} tokens, and a direction that is that of 'seven'")
print("expected: both show a score at the token that has it")
print("seen: get_activation_score: " + ", ".join(f"{word} {float(by):.2f}" for word, by in zip(WORDS, scores)))
print("seen: visualize_activation: " + ", ".join(f"{word} {by:.2f}" for word, by in zip(WORDS, shown)))
moved = np.allclose(shown[:-1], scores[1:].astype(float), atol=0.05) and shown[-1] == 0
raise SystemExit(not (moved and WORDS[int(np.argmax(scores))] == "seven" and WORDS[int(np.argmax(shown))] == "blue"))
PY
