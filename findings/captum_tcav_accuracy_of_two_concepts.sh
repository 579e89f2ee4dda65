#!/usr/bin/env bash
# captum's TCAV: the accuracy of a CAV between two concepts is the share of test examples that are of the first, since one row of scores has its largest at 0.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 scikit-learn==1.9.1 captum==0.9.0
"$python" -W ignore - <<'PY'
import random
from importlib.metadata import version

import torch
from captum.concept import TCAV, Concept
from torch import nn

EXAMPLES, WIDTH = (300, 300, 900), 8
random.seed(0), torch.manual_seed(0)
model = nn.Sequential(nn.Identity(), nn.Linear(WIDTH, 2))
# Each concept has a dimension of its own, 10 standard deviations away: a hyperplane parts any two without a fault.
kinds = [torch.randn(many, WIDTH) + 10 * torch.eye(WIDTH)[i] for i, many in enumerate(EXAMPLES)]
concepts = [Concept(i, f"concept {i}", list(rows.split(50))) for i, rows in enumerate(kinds)]
sets = {"0 and 1": concepts[:2], "1 and 0": concepts[1::-1], "0 and 2": concepts[::2], "0, 1 and 2": concepts}
print(f"captum {version('captum')}: concepts of {EXAMPLES} examples that lie far apart; TCAV with the classifier that it has by default")
print("expected: the accuracy on held-out examples is 1")
right, reported = {}, {}
cavs = TCAV(model, "0", save_path="cav").compute_cavs(list(sets.values()))
for name, chosen in sets.items():
    stats = cavs["-".join(str(concept.id) for concept in chosen)]["0"].stats
    reported[name] = float(stats["accs"])
    # What the hyperplane itself does: one row of weights for each concept, the larger product wins.
    ids = [int(i) for i in stats["classes"]]
    centred = torch.stack([kinds[i].mean(0) for i in ids]).mean(0)
    right[name] = sum(float(((kinds[i] - centred) @ stats["weights"].T).argmax(1).eq(ids.index(i)).sum()) for i in ids)
    right[name] /= sum(EXAMPLES[i] for i in ids)
    print(f"seen: concepts {name}: accuracy {reported[name]:.3f}; its weights put {right[name]:.3f} of the examples on the right side")
two = abs(reported["0 and 1"] - 1 / 2) < 0.1 and abs(reported["1 and 0"] - 1 / 2) < 0.1 and abs(reported["0 and 2"] - 1 / 4) < 0.1
raise SystemExit(not (two and reported["0, 1 and 2"] > 0.98 and min(right.values()) > 0.98))
PY
