#!/usr/bin/env bash
# captum's SimilarityInfluence, by default cosine: an activation of zeros is to get -2 and a warning, and becomes a vector of -2s instead, so its "cosine" is -2 times a sum: it may be the most similar, and no warning comes.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 captum==0.9.0
"$python" - <<'PY'
import warnings
from importlib.metadata import version

import torch
from captum.influence import SimilarityInfluence
from torch import nn
from torch.utils.data import TensorDataset

WIDTH, ROWS, DEAD = 16, 8, 5


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.after = nn.Identity(), nn.Identity()

    def forward(self, x):
        return self.after(self.layer(x))


torch.manual_seed(0)
train = torch.randn(ROWS, WIDTH)
train[DEAD] = 0
INPUTS = {"training row 0 plus 1": train[0] + 1, "training row 0 less 1": train[0] - 1, "zeros": torch.zeros(WIDTH)}


print(f"captum {version('captum')}: {ROWS} training rows, of which {DEAD} is zeros; for each input all of them by cosine similarity")
print("expected: a cosine where there is one; -2 for zeros, the last, and a warning with these pairs under 'zero_acts-layer'")
seen = {}
for number, (name, row) in enumerate(INPUTS.items()):
    # Two layers, since of one alone it ends in an error.
    similar = SimilarityInfluence(Model(), ["layer", "after"], TensorDataset(train), f"activations{number}", batch_size=ROWS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = similar.influence(row[None], top_k=ROWS)
    order, values = (by[0] for by in found["layer"])
    value = dict(zip(order.tolist(), values.tolist()))
    told = any("zero-vector" in str(w.message) for w in said) or "zero_acts-layer" in found
    right = torch.cosine_similarity(row[None], train, dim=1)
    others = max(value[i] for i in range(ROWS) if i != DEAD)
    exact = all(abs(value[i] - float(right[i])) < 1e-4 for i in range(ROWS) if i != DEAD)
    seen[name] = int(order[0]), value[DEAD], told, exact
    print(f"seen: {name}: the row of zeros has {value[DEAD]:.2f}, the best of the others {others:.2f}, first is {int(order[0])}; the others' are {'cosines' if exact else 'no cosines'}; warned: {told}")
above, below, zeros = seen.values()
right = above[3] and below[3] and not any(told for _, _, told, _ in seen.values())
raise SystemExit(not (right and above[0] == 0 and above[1] < -2 and below[0] == DEAD and below[1] > 1 and zeros[0] == DEAD and zeros[1] == 4 * WIDTH))
PY
