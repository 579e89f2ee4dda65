#!/usr/bin/env bash
# captum's TCAV: "magnitude", by its documentation the positive products' share of all, is their mean: it has the gradients' unit and may be negative.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 scikit-learn==1.9.1 captum==0.9.0
"$python" -W ignore - <<'PY'
import random
from importlib.metadata import version

import torch
from captum.concept import TCAV, Concept
from torch import nn

WIDTH = 8
random.seed(0), torch.manual_seed(0)
model = nn.Sequential(nn.Identity(), nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 1))
with torch.no_grad():
    model[1].weight.mul_(3)
concepts = [Concept(i, f"concept {i}", list((torch.randn(200, WIDTH) + 3 * torch.eye(WIDTH)[i]).split(50))) for i in range(2)]
inputs = 2 * torch.randn(64, WIDTH)
documented = TCAV.__doc__.split("2. magnitude_score = ")[1].split("\n")[0]
print(f"captum {version('captum')}: its documentation has magnitude_score = {documented}")
print("expected: a share from 0 to 1 that a hundredfold output does not change; with two concepts, as they are opposite, they sum to 1")
seen = {}
for factor in (1, 100):
    with torch.no_grad():
        model[3].weight.mul_(factor)
    tcav = TCAV(model, "0", save_path="cav")
    scores = tcav.interpret(inputs, [concepts])["0-1"]["0"]["magnitude"]
    rows = inputs.clone().requires_grad_()
    products = torch.autograd.grad(model(rows).sum(), rows)[0] @ tcav.cavs["0-1"]["0"].stats["weights"].T
    share = products.clamp_min(0).sum(0) / products.abs().sum(0)
    seen[factor] = scores, products.mean(0), share
    print(f"seen: output times {factor}: {[round(float(x), 3) for x in scores]}; the share is {[round(float(x), 3) for x in share]}")
one, hundred = seen[1], seen[100]
means = all(torch.allclose(scores, mean, rtol=1e-3) for scores, mean, _ in (one, hundred))
raise SystemExit(not (means and float(one[0].min()) < 0 and torch.allclose(one[2], hundred[2], rtol=1e-3)))
PY
