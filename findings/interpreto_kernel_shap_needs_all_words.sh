#!/usr/bin/env bash
# interpreto's KernelShap never runs the text itself nor the one that is masked whole, and draws coalitions by the kernel's inverse: what it returns are no Shapley values.
set -euo pipefail
source "$(dirname "$0")/environment_interpreto.sh"
"$python" -W ignore - <<'PY'
from itertools import combinations
from math import comb

import torch
from interpreto import KernelShap
from words import LIBRARY, MASK, TOKENIZER, WORDS, FormulaForSequenceClassification, explained, shown

COUNT, SAMPLES = 5, 20_000


def shapley(formula):
    """Shapley values by their definition, a word that is not of the coalition being masked."""
    ids = TOKENIZER(" ".join(WORDS[:COUNT]), return_tensors="pt")["input_ids"][0]
    values = torch.zeros(COUNT)
    for i in range(COUNT):
        others = [j for j in range(COUNT) if j != i]
        for size in range(COUNT):
            for kept in combinations(others, size):
                without, with_ = torch.full_like(ids, MASK), torch.full_like(ids, MASK)
                without[list(kept)], with_[[*kept, i]] = ids[list(kept)], ids[[*kept, i]]
                values[i] += (formula(with_[None]) - formula(without[None]))[0] / (COUNT * comb(COUNT - 1, size))
    return values


def kept(ids):
    return (ids != MASK).float()


FORMULAS = {
    "1 with all words, else 0": lambda ids: kept(ids).prod(-1),
    "1 with any word, else 0": lambda ids: kept(ids).amax(-1),
    "the square of the number of words": lambda ids: kept(ids).sum(-1) ** 2,
    "1 with the first three words, else 0": lambda ids: kept(ids)[..., :3].prod(-1),
}
print(f"{LIBRARY}, whose documentation has KernelShap estimate Shapley values: a text of {COUNT} words, and {SAMPLES} perturbations asked for")
print("expected: the Shapley values, which sum to the logit of the text less that of the masked text")
seen = {}
for name, formula in FORMULAS.items():
    torch.manual_seed(0)
    right, by = shapley(formula), explained(KernelShap(FormulaForSequenceClassification(formula), TOKENIZER, n_perturbations=SAMPLES), COUNT)
    seen[name] = right, by
    print(f"seen: {name}: {shown(by)}; Shapley values {shown(right)}")
both = list(seen.values())[:2]
nothing = all(float(by.abs().max()) < 1e-3 and torch.allclose(right, torch.full((COUNT,), 1 / COUNT)) for right, by in both)
right, by = seen["1 with the first three words, else 0"]
raise SystemExit(not (nothing and float((by - right).abs().max()) > 0.05))
PY
