#!/usr/bin/env bash
# cross_entropy in float16 on a CPU: the mean over many tokens is infinite, then NaN with a gradient of 0; the tokens' own losses are right.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0
"$python" -W ignore - <<'PY'
import math

import torch
import torch.nn.functional as F

CLASSES = 8
expected = math.log(CLASSES)
print(f"torch {torch.__version__}\nexpected: the mean of losses that are all log({CLASSES}) = {expected:.4f}, whatever their number, and a gradient")
seen = {}
for tokens in (1000, 40_000, 70_000):
    logits, targets = torch.zeros(tokens, CLASSES, dtype=torch.float16, requires_grad=True), torch.zeros(tokens, dtype=torch.long)
    loss = F.cross_entropy(logits, targets)
    loss.backward()
    each = F.cross_entropy(logits, targets, reduction="none").mean().item()
    wide = F.cross_entropy(logits.float(), targets).item()
    gradient = logits.grad.float().abs().sum().item()
    seen[tokens] = loss.item(), each, wide, gradient
    print(f"seen: {tokens} tokens: {loss.item():.4f}; mean() of the single losses {each:.4f}, float32 {wide:.4f}; gradient's absolute sum {gradient:.3f}")
right = all(abs(value - expected) < 0.01 for found in seen.values() for value in found[1:3])
losses, gradients = ([found[place] for found in seen.values()] for place in (0, 3))
wrong = abs(losses[0] - expected) < 0.01 and losses[1] == math.inf and math.isnan(losses[2])
raise SystemExit(not (right and wrong and min(gradients[:2]) > 1 and gradients[2] == 0))
PY
