#!/usr/bin/env bash
# steering-vectors in generate, which caches by default: min_token_index counts anew at each token, so what is generated is not steered.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==4.57.6 steering-vectors==0.12.2
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from steering_vectors import SteeringVector
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
PROMPT, NEW = 8, 8
model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64, bos_token_id=1, eos_token_id=2))
tokens = torch.arange(5, 5 + PROMPT)[None]
vector = SteeringVector({1: 5 * torch.randn(32)})


def generated(**how):
    row = model.eval().generate(tokens, do_sample=False, max_new_tokens=NEW, pad_token_id=0, eos_token_id=None, **how)
    return row[0, PROMPT:].tolist()


print(f"steering-vectors {version('steering-vectors')}: a vector from the token with the number {PROMPT} on, behind a prompt of {PROMPT} tokens")
print("expected: the generated tokens are steered, and a cache changes nothing but the time")
alone = generated()
with vector.apply(model, min_token_index=PROMPT):
    cached, uncached = generated(), generated(use_cache=False)
print(f"seen: without the vector:         {alone}\nseen: with it, use_cache=False:   {uncached}\nseen: with it, as generate does:  {cached}")
raise SystemExit(not (cached == alone and uncached[0] == alone[0] and all(a != b for a, b in zip(uncached[1:], alone[1:]))))
PY
