#!/usr/bin/env bash
# ema-pytorch: a buffer of booleans or integers, as a mask of pruned latents, keeps in the average the value it began with, also with beta=0 and after copy_params_from_model_to_ema.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 ema-pytorch==0.8.3 numpy==2.4.6
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from ema_pytorch import EMA


class Pruned(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))
        self.register_buffer("kept", torch.ones(4, dtype=dtype))

    def forward(self, x):
        return x * self.weight * self.kept


print(f"ema-pytorch {version('ema-pytorch')}, beta=0; then two of four latents are pruned and the weights become 2")
print("expected: the average is the model: [2, 2, 0, 0]")
seen = {}
for dtype in torch.float32, torch.bool, torch.int64:
    model = Pruned(dtype)
    average = EMA(model, beta=0.0, min_value=0.0, update_after_step=0, update_every=1)
    average.update()
    with torch.no_grad():
        model.weight.fill_(2)
        model.kept[2:] = 0
        for _ in range(3):
            average.update()
        updated = average(torch.ones(4)).tolist()
        average.copy_params_from_model_to_ema()
        seen[dtype] = updated, average(torch.ones(4)).tolist()
    print("seen: a mask of {}: {}; after copy_params_from_model_to_ema {}".format(dtype, *seen[dtype]))
right, wrong = [2, 2, 0, 0], [2, 2, 2, 2]
raise SystemExit(not (seen[torch.float32] == (right, right) and seen[torch.bool] == seen[torch.int64] == (wrong, wrong)))
PY
