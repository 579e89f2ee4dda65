#!/usr/bin/env bash
# ruptures with model="rbf" or "cosine": fit keeps the kernel of the signal it was given first, so every later fit returns the first signal's change points.
set -euo pipefail
source "$(dirname "$0")/environment.sh" ruptures==1.1.10
"$python" - <<'PY'
import numpy
import ruptures

ROWS = 60
noise = numpy.random.default_rng(0)


def signal(change):
    rows = noise.normal(0, 0.1, (ROWS, 2)) + [1, 0]
    rows[change:] += [-1, 1]
    return rows


first, second = signal(20), signal(40)
print(f"ruptures {ruptures.__version__}, Binseg on a signal that changes at row 20, then on one that changes at row 40")
print("expected: 20, then 40")
seen = {}
for model in "l2", "rbf", "cosine":
    detector = ruptures.Binseg(model=model, min_size=2, jump=1)
    again = [detector.fit(rows).predict(n_bkps=1)[0] for rows in (first, second)]
    fresh = ruptures.Binseg(model=model, min_size=2, jump=1).fit(second).predict(n_bkps=1)[0]
    seen[model] = [*again, fresh]
    print(f"seen: {model:6} {again[0]}, then {again[1]}; a new detector on the second signal {fresh}")
raise SystemExit(not (seen["l2"] == [20, 40, 40] and seen["rbf"] == seen["cosine"] == [20, 20, 40]))
PY
