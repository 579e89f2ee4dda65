#!/usr/bin/env bash
# torcheval's merge_state promises to leave the metrics that it merges: a fresh MeanSquaredError or R2Score takes the first one's tensors and adds the others' to them, so the first is wrong from then on.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 torcheval==0.0.7
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from torcheval import metrics

torch.set_num_threads(1)
print(f"torcheval {version('torcheval')}, torch {torch.__version__}")
print("expected: three shards' metrics, and a fresh one that merges them: the shards' own are the same before and after, as the docstring of merge_state says")


def shards(kind, width):
    """The values of three shards' metrics before and after a merge, and what was merged."""
    torch.manual_seed(0)
    parts = []
    for scale in (1.0, 2.0, 3.0):
        target = torch.randn(1000, width) * 2
        error = torch.randn(1000, width) * scale
        target, predicted = (x[:, 0] if width == 1 else x for x in (target, target + error))
        parts.append(kind().update(predicted, target))
    before = [part.compute().item() for part in parts]
    merged = kind().merge_state(parts).compute().item()
    return before, [part.compute().item() for part in parts], merged


seen = {}
for kind in (metrics.MeanSquaredError, metrics.R2Score):
    for width in (1, 8):
        before, after, merged = seen[kind.__name__, width] = shards(kind, width)
        texts = (", ".join(f"{x:.2f}" for x in values) for values in (before, after))
        print("seen: {}, {} dimensions: the shards have {} before the merge and {} after it; merged {:.2f}".format(kind.__name__, width, *texts, merged))
changed = {key: [a != b for a, b in zip(before, after)] for key, (before, after, _) in seen.items()}
raise SystemExit(not all(which == [key[1] == 8, False, False] for key, which in changed.items()))
PY
