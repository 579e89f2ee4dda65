#!/usr/bin/env bash
# lxt's monkey_patch of GPT-2 for LRP changes what all models share: from then on no Dropout of torch's drops, a LayerNorm has another gradient and over two dimensions another output, and a Llama's queries and keys are not trained.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==4.57.6
# What else it asks for, as open_clip_torch, takes torchvision, which does not load beside a torch for CPUs alone.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps lxt==2.1; fi
"$python" -W ignore - 2>/dev/null <<'PY'
import sys
from importlib.metadata import version
from types import ModuleType, SimpleNamespace

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gpt2 import modeling_gpt2

# Its models of images and its rules from zennit, for torchvision's sake: nothing here is of them.
sys.modules["lxt.efficient.models.vit_torch"] = SimpleNamespace(vision_transformer=ModuleType("vision_transformer"), cp_LRP={})
sys.modules["lxt.efficient.zennit_patches"] = SimpleNamespace(monkey_patch_zennit=None)
from lxt.efficient import monkey_patch  # noqa: E402
from lxt.efficient.models.gpt2 import cp_LRP  # noqa: E402

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 60}
llama, tokens = LlamaForCausalLM(LlamaConfig(**sizes)), torch.arange(1, 9)[None]
x, norms = torch.randn(2, 5, 8), {"LayerNorm(8)": nn.LayerNorm(8), "LayerNorm((5, 8))": nn.LayerNorm((5, 8))}
print(f"lxt {version('lxt')}, transformers {version('transformers')}: modules that are no part of a GPT-2, before and after GPT-2 is patched with cp_LRP")


def measured():
    """Zeros of a Dropout in training; outputs and gradients of two LayerNorms; gradients of a Llama's queries and values."""
    came = {"Dropout(0.5)": (nn.Dropout(0.5).train()(torch.ones(10000)) == 0).float().mean()}
    for name, norm in norms.items():
        given = x.clone().requires_grad_()
        came[f"{name}'s output"] = norm(given)
        came[f"{name}'s gradient"] = torch.autograd.grad(came[f"{name}'s output"].pow(3).sum(), given)[0]
    llama.zero_grad()
    llama(tokens, labels=tokens).loss.backward()
    for name in ("q_proj", "v_proj"):
        gradient = getattr(llama.model.layers[0].self_attn, name).weight.grad
        came[f"Llama's {name}"] = torch.tensor(0.0) if gradient is None else gradient.clone()
    return came


before = measured()
monkey_patch(modeling_gpt2, cp_LRP)
after = measured()
print("expected: they are as they were")
print(f"seen: Dropout(0.5) in training: {before['Dropout(0.5)']:.0%} zeros before, {after['Dropout(0.5)']:.0%} after")
far = {}
for name in list(before)[1:]:
    far[name] = ((after[name] - before[name]).norm() / before[name].norm()).item()
    print(f"seen: {name}{'' if 'LayerNorm' in name else ', its gradient'}: changed by {far[name]:.0%} of its norm")
same = far["LayerNorm(8)'s output"] < 1e-5
changed = [name for name in far if far[name] > 0.1]
others = ["LayerNorm(8)'s gradient", "LayerNorm((5, 8))'s output", "LayerNorm((5, 8))'s gradient", "Llama's q_proj"]
raise SystemExit(not (before["Dropout(0.5)"] > 0.4 and after["Dropout(0.5)"] == 0 and same and changed == others and far["Llama's q_proj"] == 1))
PY
