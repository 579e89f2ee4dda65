#!/usr/bin/env bash
# interpreto's IntegratedGradients multiplies each step's gradient by that step's embedding, not by input less baseline, and takes what is absolute: no sign, no completeness, and no zero at the baseline.
set -euo pipefail
source "$(dirname "$0")/environment_interpreto.sh"
"$python" -W ignore - <<'PY'
import torch
from interpreto import IntegratedGradients
from words import LIBRARY, TOKENIZER, WORDS, FormulaForSequenceClassification, explained, shown

COUNT = 4
SLOPE = torch.tensor([1.0, -1.0, 1.0, -1.0])
embedded = TOKENIZER(" ".join(WORDS[:COUNT]), return_tensors="pt")["input_ids"][0].float()[:, None]
print(f"{LIBRARY}: a text of {COUNT} words whose embeddings are {shown(embedded[:, 0])}; 200 steps")
print("expected: of a linear model, embedding less baseline times the weight; these sum to what the logit changes from the baseline; nothing where text and baseline are one")
CASES = {
    "the embeddings' sum": (lambda e: e.sum((-1, -2)), None, embedded[:, 0]),
    "the sum with weights 1, -1, 1, -1": (lambda e: (e[..., 0] * SLOPE).sum(-1), None, embedded[:, 0] * SLOPE),
    "the sum, with the text as its own baseline": (lambda e: e.sum((-1, -2)), embedded, torch.zeros(COUNT)),
}
seen = []
for name, (formula, baseline, right) in CASES.items():
    by = explained(IntegratedGradients(FormulaForSequenceClassification(formula), TOKENIZER, n_perturbations=200, baseline=baseline), COUNT)
    seen.append(by)
    print(f"seen: {name}: {shown(by)}; integrated gradients are {shown(right)}")
half = all(torch.allclose(by, embedded[:, 0] / 2, atol=1e-2) for by in seen[:2])
raise SystemExit(not (half and torch.allclose(seen[2], embedded[:, 0], atol=1e-2)))
PY
