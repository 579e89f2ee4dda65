#!/usr/bin/env bash
# circuit-tracer's feature_intervention_generate: slice(20, None), from position 20 on, acts from the first generated token on, wherever that is.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 circuit-tracer==0.5.0
"$python" -W ignore - 2>/dev/null <<'PY'
import os
import sys
from importlib.metadata import version

import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from tokenizers import Tokenizer, models
from transformer_lens import HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

LAYERS, WIDTH, LATENTS, VOCABULARY, NEW = 2, 16, 32, 40, 12
torch.manual_seed(0)
transcoders = {}
for layer in range(LAYERS):
    transcoders[layer] = SingleLayerTranscoder(WIDTH, LATENTS, torch.relu, layer, device=torch.device("cpu"), dtype=torch.float32)
    for parameter in transcoders[layer].parameters():
        parameter.data.normal_(std=0.3)
config = HookedTransformerConfig(
    n_layers=LAYERS, d_model=WIDTH, n_ctx=64, n_heads=2, d_head=8, d_mlp=32, d_vocab=VOCABULARY, act_fn="gelu", model_name="tiny", seed=0, device="cpu"
)  # fmt: skip
model = TransformerLensReplacementModel.from_config(config, TranscoderSet(transcoders, "hook_resid_mid", "hook_mlp_out", scan="none"))
for name, parameter in model.named_parameters():
    if "W_" in name:
        parameter.data *= 4
words = {f"word{i}": i for i in range(VOCABULARY)}
model.tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="word1")), bos_token="word0", eos_token="word0", pad_token="word39"
)
prompt = torch.tensor([[0, 5, 6, 7, 8]])
length = prompt.shape[1]


def generated(position):
    came, _, _ = model.feature_intervention_generate(
        prompt, [(0, position, 3, 30.0)], freeze_attention=False, do_sample=False, max_new_tokens=NEW, stop_at_eos=False, verbose=False
    )
    return came[0, length:].tolist()


print(f"circuit-tracer {version('circuit-tracer')}: a prompt of {length} tokens, then {NEW} greedy ones; one latent is set to 30")
with torch.no_grad():
    plain = model.generate(prompt, do_sample=False, max_new_tokens=NEW, stop_at_eos=False, verbose=False)[0, length:].tolist()
print(f"without an intervention: {plain}")
seen = {start: generated(slice(start, None)) for start in (length, 10, 20)}
for start, tokens in seen.items():
    same = "all" if start >= length + NEW else f"those up to position {start}"
    print(f"slice({start}, None)\n  expected: {same} as without\n  seen: {tokens}")
early = seen[length] != plain and seen[10] == seen[length] and seen[20] == seen[length]
sys.stdout.flush()
# The model's own __del__ complains at exit.
os._exit(not early)
PY
