#!/usr/bin/env bash
# torchmetrics' AUROC and average precision of scores that are no probabilities, as a latent's activations: a batch that leaves 0 to 1 goes through a sigmoid, and the next may not: ranks depend on the batches, large scores tie.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0 scikit-learn==1.9.1
"$python" -W ignore - <<'PY'
import torch
import torchmetrics
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

torch.set_num_threads(1)
ROWS, BATCHES = 20_000, (20_000, 64, 16)
torch.manual_seed(0)
labels = (torch.rand(ROWS) < 0.3).long()
normal = torch.randn(ROWS) + 1.5 * labels
activations = {
    "activations of 0 to 1.6": (0.3 * normal).relu(),
    "activations of around 20": (20 + 10 * normal).relu(),
    "the first, divided by its maximum": (0.3 * normal).relu() / (0.3 * normal).max(),
}
print(f"torchmetrics {torchmetrics.__version__}, torch {torch.__version__}; {ROWS} rows")
print("expected: both depend on the order of all scores alone, so they are scikit-learn's, however the rows are cut into batches")
seen = {}
for name, scores in activations.items():
    exact = roc_auc_score(labels, scores), average_precision_score(labels, scores)
    print(f"seen: {name}: scikit-learn has AUROC {exact[0]:.3f}, average precision {exact[1]:.3f}")
    for rows in BATCHES:
        pair = BinaryAUROC(), BinaryAveragePrecision()
        for first in range(0, ROWS, rows):
            for metric in pair:
                metric.update(scores[first : first + rows], labels[first : first + rows])
        found = [metric.compute().item() for metric in pair]
        seen[name, rows] = max(abs(a - b) for a, b in zip(found, exact))
        print(f"seen: {name}, batches of {rows}: AUROC {found[0]:.3f}, average precision {found[1]:.3f}")
small, large, scaled = activations
right = max(seen[small, ROWS], *(seen[scaled, rows] for rows in BATCHES))
wrong = min(seen[small, 64], seen[small, 16], *(seen[large, rows] for rows in BATCHES))
raise SystemExit(not (right < 1e-3 and wrong > 0.03))
PY
