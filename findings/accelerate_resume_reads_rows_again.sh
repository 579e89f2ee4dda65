#!/usr/bin/env bash
# accelerate's load_state and skip_first_batches, as its guide has it, on a shuffled loader: half of the rows that were read come again; with a seedable sampler that is so from epoch 2 on.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 accelerate==1.15.0
"$python" -W ignore - 2>/dev/null <<'PY'
import accelerate
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader

ROWS, BATCH, READ = 240, 4, 30


def prepared(seedable):
    """What a new process would make."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable))
    set_seed(0)
    return accelerator, accelerator.prepare(DataLoader(range(ROWS), BATCH, shuffle=True))


def rows(batches):
    return [int(row) for batch in batches for row in batch]


print(f"accelerate {accelerate.__version__}, torch {torch.__version__}, {ROWS} rows, shuffled, saved after {READ} of an epoch's {ROWS // BATCH} batches")
print("expected: after load_state and skip_first_batches the rows come that are left of that epoch, and the next epoch has an order of its own")
seen = {}
for seedable in (False, True):
    for epoch in (1, 2):
        accelerator, loader = prepared(seedable)
        earlier = [rows(loader) for _ in range(epoch - 1)]
        iterator = iter(loader)
        before = rows(next(iterator) for _ in range(READ))
        accelerator.save_state("state")
        whole = before + rows(iterator)
        accelerator, loader = prepared(seedable)
        accelerator.load_state("state")
        after = rows(accelerator.skip_first_batches(loader, READ))
        later = rows(loader)
        again, never = len(set(before) & set(after)), len(set(range(ROWS)) - set(before) - set(after))
        seen[seedable, epoch] = before + after == whole, again, never, later in [*earlier, whole]
        same = "as without a stop" if seen[seedable, epoch][0] else f"{again} rows come again, {never} never"
        print(f"seen: use_seedable_sampler={seedable}, stopped in epoch {epoch}: {same}; the next epoch " + ("has an earlier one's order" if seen[seedable, epoch][3] else "has an order of its own"))
lost = all(not same and again == never > 30 for key, (same, again, never, _) in seen.items() if key != (True, 1))
raise SystemExit(not (lost and seen[True, 1] == (True, 0, 0, True) and seen[True, 2][3] and not seen[False, 1][3]))
PY
