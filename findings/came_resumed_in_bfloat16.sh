#!/usr/bin/env bash
# CAME keeps float32 moments beside bfloat16 weights; load_state_dict casts them to bfloat16, and there they stay and never fall: after large early gradients a resumed run takes steps several times too small.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 came-pytorch==0.1.3
"$python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
from came_pytorch.CAME import CAME
from torch import nn

torch.set_num_threads(1)
FIRST, LATER, SMALL = 20, 3000, 2.0**-6
print(f"came-pytorch {version('came-pytorch')}, torch {torch.__version__}; {FIRST} gradients of 1, then {LATER} of 2^-6")
print("expected: a run that loads its own state dict goes on as one that does not stop")


def run(shape, dtype, resumed):
    """The last step's size, and the second moments and their dtype, of a run that may be resumed after the first gradients."""
    weight = nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = CAME([weight], lr=1e-3)
    for step in range(FIRST + LATER):
        if step == FIRST and resumed:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = CAME([weight], lr=1e-3)
            optimizer.load_state_dict(state)
        nn.init.zeros_(weight)
        weight.grad = torch.full_like(weight, 1.0 if step < FIRST else SMALL)
        optimizer.step()
    squares = next(value for name, value in optimizer.state[weight].items() if name in ("exp_avg_sq", "exp_avg_sq_row"))
    return -weight.mean().item(), squares.mean().item(), squares.dtype


seen = {}
for shape in ((8,), (8, 4)):
    for dtype in (torch.float32, torch.bfloat16):
        one, other = (run(shape, dtype, resumed) for resumed in (False, True))
        seen[shape, dtype] = other[1] / one[1], other[0] / one[0], other[2]
        print(
            f"seen: weights of {dtype} {shape}: at the end the squares of gradients are {one[1]:.1e} in {one[2]}, the step {one[0]:.1e};"
            f" of the resumed run they are {other[1]:.1e} in {other[2]}, the step {other[0]:.1e}"
        )
right = all(found == (1.0, 1.0, torch.float32) for (_, dtype), found in seen.items() if dtype == torch.float32)
stuck = [found for (_, dtype), found in seen.items() if dtype == torch.bfloat16]
raise SystemExit(not (right and all(ratio > 10 and kind == torch.bfloat16 for ratio, _, kind in stuck) and stuck[0][1] < 0.5))
PY
