#!/usr/bin/env bash
# POT's emd and emd2 of costs far below 0, as minus the inner products of non-negative codes: the problem is called infeasible for its weights, the plan is all 0 and the cost 0; with a constant added it is solved.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 scipy==1.17.1 pot==0.9.7.post1
"$python" -W ignore - <<'PY'
import numpy as np
import ot
from scipy.optimize import linear_sum_assignment

ROWS = 50
rng = np.random.default_rng(0)
codes = np.abs(rng.standard_normal((ROWS, 64)))
products = codes @ codes[rng.permutation(ROWS)].T
weights = np.full(ROWS, 1 / ROWS)
print(f"POT {ot.__version__}, {ROWS} rows and the same permuted, weights of 1/{ROWS}")
print("expected: the plan has mass 1 and scipy's cost; a constant added to all costs leaves the plan and is added to the cost")
seen = {}
costs = {"minus the inner products": -products, "their maximum minus them": products.max() - products}
costs |= {f"uniform from {low} to {low + 1}": rng.random((ROWS, ROWS)) + low for low in (0, -1, -2, -3, -100)}
for name, cost in costs.items():
    best = cost[linear_sum_assignment(cost)].mean()
    plan, log = ot.emd(weights, weights, cost, log=True)
    seen[name] = abs(plan.sum() - 1) < 1e-6 and abs(ot.emd2(weights, weights, cost) - best) < 1e-6 * (1 + abs(best)), plan.sum(), ot.emd2(weights, weights, cost)
    print(f"seen: {name}: scipy's cost {best:.2f}; emd's plan has mass {plan.sum():.2f}, emd2 gives {seen[name][2]:.2f}; warning: {log['warning']}")
broken = ("minus the inner products", "uniform from -3 to -2", "uniform from -100 to -99")
raise SystemExit(not all(found[1:] == (0, 0) if name in broken else found[0] for name, found in seen.items()))
PY
