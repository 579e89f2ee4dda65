#!/usr/bin/env bash
# interpreto's Lime, with its default cosine distance: it is the distance to the text that is masked whole, so what is nearest to the explained text counts least.
set -euo pipefail
source "$(dirname "$0")/environment_interpreto.sh"
"$python" -W ignore - <<'PY'
import torch
from interpreto import Lime
from words import LIBRARY, MASK, TOKENIZER, FormulaForSequenceClassification, explained, shown

COUNT, NEAR, WIDTH = 8, 3, 0.1
cosine = Lime.distance_functions.COSINE


def formula(ids):
    """With up to NEAR words masked the first word decides, and farther from the text the second."""
    kept = (ids != MASK).float()
    return torch.where(COUNT - kept.sum(-1) <= NEAR, kept[..., 0], kept[..., 1])


def cosine_to_the_text(mask):
    """1 less the cosine between the words that are kept and those of the text."""
    kept = 1 - mask
    return 1 - torch.cosine_similarity(torch.ones_like(kept), kept, dim=1)


print(f"{LIBRARY}: Lime of a text of {COUNT} words. Where at most {NEAR} are masked the first word decides the logit, else the second; kernel_width is {WIDTH}")
print("expected: samples near the text weigh most, so the first word is what matters")
model = FormulaForSequenceClassification(formula)
rows = {"the text": torch.zeros(1, COUNT), "masked whole": torch.ones(1, COUNT)}
distance = {name: float(cosine(mask)) for name, mask in rows.items()}
print("seen: distances: " + ", ".join(f"{name} {by:.2f}" for name, by in distance.items()))
seen = {}
for name, how in {"by default": {}, "distance of the words kept": {"distance_function": cosine_to_the_text}}.items():
    torch.manual_seed(0)
    seen[name] = explained(Lime(model, TOKENIZER, n_perturbations=5_000, kernel_width=WIDTH, **how), COUNT)
    print(f"seen: {name}: {shown(seen[name])}")
default, right = seen.values()
turned = distance["the text"] == 1 and distance["masked whole"] < 1e-6
raise SystemExit(not (turned and default[1] > 0.9 and abs(default[0]) < 0.1 and right[0] > 0.8 and abs(right[1]) < 0.2))
PY
