#!/usr/bin/env bash
# pytorch-optimizer and heavyball count steps for a group, not for each weight: one whose first gradient comes late (unfrozen, an expert) gets no bias correction, and steps several times too large.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 pytorch_optimizer==4.1.0 heavyball==3.2.1
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import heavyball
import pytorch_optimizer
import torch

heavyball.utils.compile_mode = None
torch.set_num_threads(1)
FROZEN, STEPS = 1000, 20
kinds = {
    "torch.optim.AdamW": torch.optim.AdamW,
    "torch.optim.NAdam": torch.optim.NAdam,
    "pytorch_optimizer.AdaBelief": pytorch_optimizer.AdaBelief,
    "pytorch_optimizer.AdEMAMix": pytorch_optimizer.AdEMAMix,
    "pytorch_optimizer.LaProp": pytorch_optimizer.LaProp,
    "heavyball.AdEMAMix": heavyball.AdEMAMix,
    "heavyball.NAdam": heavyball.NAdam,
    "heavyball.RMSprop": heavyball.RMSprop,
}
print(f"torch {torch.__version__}, pytorch-optimizer {version('pytorch_optimizer')}, heavyball {version('heavyball')}")
print(f"expected: the steps of a weight that was frozen for {FROZEN} steps are those it has in an optimizer made when it is unfrozen, as with torch's")


def way(kind, frozen):
    """Lengths of the first steps of a weight that had no gradient for `frozen` steps, its neighbour having one."""
    generator = torch.Generator().manual_seed(0)
    weight, neighbour = (torch.nn.Parameter(torch.randn(8, 8, generator=generator)) for _ in range(2))
    optimizer = kind([weight, neighbour], lr=1e-3, weight_decay=0.0)
    gradients, others = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    lengths = []
    for step in range(frozen + STEPS):
        before = weight.detach().clone()
        neighbour.grad = torch.randn(8, 8, generator=others)
        weight.grad = torch.randn(8, 8, generator=gradients) if step >= frozen else None
        optimizer.step()
        lengths.append((weight.detach() - before).norm().item())
    return lengths[frozen:]


seen = {}
for name, kind in kinds.items():
    fresh, late = way(kind, 0), way(kind, FROZEN)
    seen[name] = sum(late) / sum(fresh)
    print(f"seen: {name}: its first step is {late[0] / fresh[0]:.1f} times as long, its first {STEPS} together {seen[name]:.1f} times")
right = [abs(ratio - 1) < 1e-3 for name, ratio in seen.items() if name.startswith("torch")]
raise SystemExit(not (all(right) and all(ratio > 2 for name, ratio in seen.items() if not name.startswith("torch"))))
PY
