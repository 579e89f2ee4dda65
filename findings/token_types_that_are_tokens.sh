#!/usr/bin/env bash
# token_type_ids of zeros, "sentence A" by the documentation, in GPT-2, GPT-J, CodeGen, GPT-Neo, GPTBigCode and CTRL: the embedding of token 0 is added to each token; in BERT and XLNet zeros are the default.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - <<'PY'
import torch
import transformers
from transformers import (
    BertConfig, BertModel, CodeGenConfig, CodeGenModel, CTRLConfig, CTRLModel, GPT2Config, GPT2Model, GPTBigCodeConfig, GPTBigCodeModel,
    GPTJConfig, GPTJModel, GPTNeoConfig, GPTNeoModel, XLNetConfig, XLNetModel,
)  # fmt: skip

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64}
short = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
torch.manual_seed(0)
models = {
    "bert": BertModel(BertConfig(**sizes)),
    "xlnet": XLNetModel(XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48, vocab_size=64)),
    "gpt2": GPT2Model(GPT2Config(**short)),
    "gptj": GPTJModel(GPTJConfig(**short, rotary_dim=4)),
    "codegen": CodeGenModel(CodeGenConfig(**short, rotary_dim=4)),
    "gpt_neo": GPTNeoModel(GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], vocab_size=64)),
    "gpt_bigcode": GPTBigCodeModel(GPTBigCodeConfig(**short)),
    "ctrl": CTRLModel(CTRLConfig(**short, dff=48)),
}
tokens = torch.randint(4, 60, (1, 12), generator=torch.Generator().manual_seed(0))
print(f"transformers {transformers.__version__}\nexpected: states are the same without token_type_ids and with zeros, as a tokenizer for BERT has for one text")


def off(states, from_):
    return ((states - from_).norm() / from_.norm()).item()


seen = {}
with torch.no_grad():
    for name, model in models.items():
        embed = model.eval().get_input_embeddings()
        embed.weight[0].normal_(std=0.02)  # a pad token's is 0 in a new model
        without = model(tokens).last_hidden_state
        zeros = model(tokens, token_type_ids=torch.zeros_like(tokens)).last_hidden_state
        sums = model(inputs_embeds=embed(tokens) + embed(torch.zeros_like(tokens))).last_hidden_state
        seen[name] = off(zeros, without), off(zeros, sums)
        print(f"seen: {name}: with zeros states are {seen[name][0]:.1%} off those without; off those of the sums with token 0's embedding: {seen[name][1]:.1%}")
right = all(seen.pop(name)[0] < 1e-5 for name in ("bert", "xlnet"))
raise SystemExit(not (right and all(moved > 0.05 and hand < 1e-5 for moved, hand in seen.values())))
PY
