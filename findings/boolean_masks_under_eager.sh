#!/usr/bin/env bash
# A boolean mask of (batch, 1, tokens, tokens): sdpa obeys it; eager, the default of Gemma 2 and gpt-oss, adds it as 0 and 1, so tokens hear later ones and other documents.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import (
    Gemma2Config, Gemma2Model, GPT2Config, GPT2Model, GPTNeoXConfig, GPTNeoXModel, GptOssConfig, GptOssModel, LlamaConfig, LlamaModel,
    Qwen3Config, Qwen3Model,
)  # fmt: skip

LENGTH, FIRST = 24, 10
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64}
grouped = {**sizes, "num_key_value_heads": 2, "head_dim": 8}
torch.manual_seed(0)
kinds = {
    "llama": (LlamaModel, LlamaConfig(**sizes)),
    "qwen3": (Qwen3Model, Qwen3Config(**grouped)),
    "gpt_neox": (GPTNeoXModel, GPTNeoXConfig(**sizes)),
    "gpt2": (GPT2Model, GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=64)),
    "gemma2": (Gemma2Model, Gemma2Config(**grouped)),
    "gpt_oss": (GptOssModel, GptOssConfig(**grouped, num_local_experts=4, num_experts_per_tok=2)),
}
tokens = torch.randint(4, 60, (1, LENGTH), generator=torch.Generator().manual_seed(0))
positions = torch.cat([torch.arange(FIRST), torch.arange(LENGTH - FIRST)])[None]
keep = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
keep[FIRST:, :FIRST] = False  # two documents in one row
added = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~keep, torch.finfo(torch.float32).min)
masks = {"boolean": keep[None, None], "0 and minus infinity": added}
print(f"transformers {transformers.__version__}, two documents of {FIRST} and {LENGTH - FIRST} tokens in a row, with a mask of what each token attends to")
print("expected: the states of each document are those that it has alone; or the mask is refused")
seen = {}
for name, (kind, config) in kinds.items():
    model = kind(config).eval()
    default = model.config._attn_implementation
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight *= 5
        for way in {default: None, "eager": None}:
            model.set_attn_implementation(way)
            alone = torch.cat([model(tokens[:, :FIRST]).last_hidden_state, model(tokens[:, FIRST:]).last_hidden_state], 1)
            for mask_name, mask in masks.items():
                states = model(tokens, attention_mask=mask, position_ids=positions).last_hidden_state
                seen[name, way, mask_name] = ((states - alone).norm() / alone.norm()).item()
            tail = " (its default)" if way == default else ""
            print(f"seen: {name}, {way}{tail}: off by " + ", ".join(f"{seen[name, way, mask_name]:.1%} with a mask that is {mask_name}" for mask_name in masks))
eager = all(value > 0.05 for (_, way, mask), value in seen.items() if way == "eager" and mask == "boolean")
others = all(value < 1e-4 for (_, way, mask), value in seen.items() if way == "sdpa" or mask != "boolean")
defaults = {name for name, way, _ in seen if (name, "sdpa", "boolean") not in seen}
raise SystemExit(not (eager and others and defaults == {"gemma2", "gpt_oss"}))
PY
