#!/usr/bin/env bash
# overcomplete's ArchetypalAnalysis: each step takes a softmax of weights that are stochastic already, so every archetype is the mean of the data.
set -euo pipefail
source "$(dirname "$0")/environment_overcomplete.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from overcomplete.optimization.archetypal_analysis import ArchetypalAnalysis, project_simplex

torch.manual_seed(0)
torch.set_num_threads(1)
ROWS, ATOMS = 300, 3
corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
data = torch.distributions.Dirichlet(torch.full((ATOMS,), 0.3)).sample((ROWS,)) @ corners
print(f"overcomplete {version('overcomplete')}\nexpected: archetypes near the corners {corners.tolist()} of the data, and a point of the simplex is projected onto itself")
model = ArchetypalAnalysis(ATOMS, tol=0)
codes, archetypes = model.fit(data, max_iter=500)
mean = data.mean(0)
away = (archetypes - mean).norm(dim=1).max().item()
explained = 1 - ((data - codes @ archetypes).pow(2).sum() / (data - mean).pow(2).sum()).item()
print(f"seen: the archetypes are {[[round(v, 2) for v in row] for row in archetypes.tolist()]}, the mean of the data is {[round(v, 2) for v in mean.tolist()]}")
print(f"seen: {explained:.1%} of the variance is explained, with 500 steps, the default; the codes lie between {codes.min():.2f} and {codes.max():.2f}")
onto = project_simplex(torch.tensor([[1.0, 0.0, 0.0]]))[0].tolist()
print(f"seen: project_simplex of (1, 0, 0), which lies in the simplex: {[round(v, 2) for v in onto]}")
raise SystemExit(not (away < 0.5 and explained < 0.1 and max(onto) < 0.6))
PY
