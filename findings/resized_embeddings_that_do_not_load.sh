#!/usr/bin/env bash
# resize_token_embeddings for Mllama, Moshi and CPM-Ant: the model saved then cannot be loaded; ESM's does not even run.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0
"$python" -W ignore - 2>/dev/null <<'PY'
import tempfile

import torch
import transformers
from transformers import (
    BertConfig, BertForMaskedLM, CpmAntConfig, CpmAntForCausalLM, EsmConfig, EsmForMaskedLM, LlamaConfig, LlamaForCausalLM, MllamaForCausalLM,
    MoshiConfig, MoshiForCausalLM,
)  # fmt: skip
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
cpm = {"hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48, "num_hidden_layers": 2, "vocab_size": 64}
torch.manual_seed(0)
models = {
    "llama": LlamaForCausalLM(LlamaConfig(**sizes)),
    "bert": BertForMaskedLM(BertConfig(**sizes)),
    "mllama": MllamaForCausalLM(MllamaTextConfig(**sizes, num_key_value_heads=2, cross_attention_layers=[1], pad_token_id=0)),
    "moshi": MoshiForCausalLM(MoshiConfig(**{**sizes, "intermediate_size": None}, ffn_dim=48, num_codebooks=2)),
    "cpmant": CpmAntForCausalLM(CpmAntConfig(**cpm, prompt_types=4, prompt_length=8, segment_types=4)),
    "esm": EsmForMaskedLM(EsmConfig(**sizes, pad_token_id=1)),
}
tokens = torch.arange(5, 14)[None]
print(f"transformers {transformers.__version__}\nexpected: with 8 tokens more a model runs, and what it saves is loaded again")
seen = {}
for name, model in models.items():
    model.eval().resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + 8)
    steps = []
    try:
        with torch.no_grad():
            model(tokens)
        steps.append("runs")
    except RuntimeError:
        steps.append("does not run")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        try:
            type(model).from_pretrained(folder)
            steps.append("is loaded")
        except RuntimeError:
            steps.append("is not loaded")
    seen[name] = steps
    print(f"seen: {name}: {steps[0]}, {steps[1]}")
right, lost = ["runs", "is loaded"], ["runs", "is not loaded"]
broken = {"mllama": lost, "moshi": lost, "cpmant": lost, "esm": ["does not run", "is not loaded"]}
raise SystemExit(seen != {"llama": right, "bert": right, **broken})
PY
