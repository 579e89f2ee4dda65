#!/usr/bin/env bash
# concept-erasure's LEACE: a concept of few tokens is not erased at all, since svd_tol is absolute and a label's spread is small where it is rare.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 concept-erasure==0.2.4
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from concept_erasure import LeaceEraser

TOKENS, WIDTH, APART = 200_000, 32, 8.0
torch.manual_seed(0)
print(f"concept-erasure {version('concept-erasure')}: {TOKENS} activations; those of the concept are {APART:g} standard deviations away")
print("expected: after erasing, the means with and without the concept are one, as LEACE has it for any concept")
changed, left = {}, {}
for one_in in (10, 100, 1000):
    label = torch.zeros(TOKENS, dtype=torch.int64)
    label[::one_in] = 1
    activations = torch.randn(TOKENS, WIDTH)
    activations[:, 0] += APART * label
    erased = LeaceEraser.fit(activations, label)(activations)
    changed[one_in] = not torch.equal(erased, activations)
    left[one_in] = float((erased[label == 1].mean(0) - erased[label == 0].mean(0)).norm())
    done = "were changed" if changed[one_in] else "are bit for bit as before"
    print(f"seen: one token in {one_in}: activations {done}; the means are {left[one_in]:.4f} apart")
larger = LeaceEraser.fit(activations, 100 * label)(activations)
by_unit = float((larger[label == 1].mean(0) - larger[label == 0].mean(0)).norm())
print(f"seen: the rarest once more, its label 100 instead of 1: {by_unit:.4f} apart")
kept = not changed[1000] and left[1000] > 0.9 * APART
raise SystemExit(not (left[10] < 1e-3 and left[100] < 1e-3 and kept and by_unit < 1e-3))
PY
