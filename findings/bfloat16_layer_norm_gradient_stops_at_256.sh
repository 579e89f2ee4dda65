#!/usr/bin/env bash
# bfloat16 on a CPU: gradients of LayerNorm's weight and bias stop counting at 256 tokens for each thread; float32 weights do not help.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0
"$python" -W ignore - <<'PY'
import torch
from torch import nn

TOKENS, WIDTH = 4096, 8
x = torch.tensor([1.0, -1.0]).repeat(TOKENS, WIDTH // 2)
print(f"torch {torch.__version__}\nexpected: as with float32: each token's gradient is 1, so a bias has {TOKENS}, and so has a weight where the input is 1")


def gradients(module, dtype):
    module(x.to(dtype)).backward(torch.ones(TOKENS, WIDTH, dtype=dtype))
    return tuple(round(parameter.grad[..., 0].max().item()) for parameter in module.parameters())


def modules(dtype):
    of_weights = {"LayerNorm": nn.LayerNorm(WIDTH), "RMSNorm": nn.RMSNorm(WIDTH), "GroupNorm": nn.GroupNorm(1, WIDTH), "Linear": nn.Linear(WIDTH, WIDTH)}
    return {name: module.to(dtype) for name, module in of_weights.items()}


seen = {}
for threads in (1, 2):
    torch.set_num_threads(threads)
    for dtype in (torch.float32, torch.bfloat16):
        found = {name: gradients(module, dtype) for name, module in modules(dtype).items()}
        if dtype == torch.bfloat16:
            found["LayerNorm with float32 weights"] = gradients(nn.LayerNorm(WIDTH), dtype)
        seen[threads, dtype] = found
        name_of = f"{str(dtype).removeprefix('torch.')}, {threads} threads"
        print(f"seen: {name_of}: " + ", ".join(f"{name} {' and '.join(map(str, grad))}" for name, grad in found.items()))
right = all(set(grad) == {TOKENS} for key, found in seen.items() for name, grad in found.items() if "LayerNorm" not in name or key[1] == torch.float32)
low = {threads: max(max(grad) for name, grad in seen[threads, torch.bfloat16].items() if "LayerNorm" in name) for threads in (1, 2)}
raise SystemExit(not (right and low[1] < TOKENS / 4 and low[2] < TOKENS / 2))
PY
