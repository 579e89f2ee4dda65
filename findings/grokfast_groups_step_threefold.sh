#!/usr/bin/env bash
# pytorch-optimizer's GrokFastAdamW divides lr by 1 + grokfast_lamb, 3 by default, but neither a group's own lr nor one set later: the same number means steps three times as long.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 pytorch_optimizer==4.1.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import pytorch_optimizer
import torch

LR, STEPS = 3e-3, 50
print(f"pytorch-optimizer {version('pytorch_optimizer')}, lr={LR}\nexpected: an lr means the same whether it is the optimizer's, a group's, or set before each step, as a schedule does")


def way(kind, how, **options):
    """How far a weight goes with the lr given in one of three ways."""
    weight = torch.nn.Parameter(torch.zeros(64))
    group = {"params": [weight], "lr": LR} if how == "group" else {"params": [weight]}
    optimizer = kind([group], lr=LR, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        weight.grad = torch.randn(64, generator=generator) + 1
        if how == "set":
            optimizer.param_groups[0]["lr"] = LR
        optimizer.step()
    return weight.norm().item()


seen = {}
kinds = {
    "torch.optim.AdamW": (torch.optim.AdamW, {}),
    "GrokFastAdamW": (pytorch_optimizer.GrokFastAdamW, {}),
    "GrokFastAdamW, normalize_lr=False": (pytorch_optimizer.GrokFastAdamW, {"normalize_lr": False}),
}
for name, (kind, options) in kinds.items():
    lengths = [way(kind, how, **options) for how in ("optimizer", "group", "set")]
    seen[name] = [length / lengths[0] for length in lengths]
    print(f"seen: {name}: as the optimizer's lr a weight goes {lengths[0]:.3f} far, as a group's {seen[name][1]:.2f} times as far, set before each step {seen[name][2]:.2f} times")
one, three, same = seen.values()
raise SystemExit(not (one == same == [1, 1, 1] and all(abs(value - 3) < 1e-3 for value in three[1:])))
PY
