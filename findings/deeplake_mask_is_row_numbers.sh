#!/usr/bin/env bash
# deeplake given a list of booleans, as a mask, takes it for row numbers 0 and 1: as many rows as the mask is long come back, all of them the first or the second.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 deeplake==4.7.4
"$python" -W ignore - <<'PY'
import deeplake
import numpy as np
from deeplake import types

rows = deeplake.create("rows")
rows.add_column("act", types.Float64())
acts = np.linspace(0, 0.9, 10).round(1)
rows.append({"act": acts})
mask = (acts > 0.65).tolist()
numbers = np.flatnonzero(mask).tolist()
print(f"deeplake {deeplake.__version__}, activations {acts.tolist()}\nexpected: a mask picks the rows where it is true, as in numpy, or is refused")
seen = {
    "numpy, with the mask": acts[mask],
    "deeplake, with row numbers": rows[numbers]["act"][:],
    "deeplake, a data set with the mask": rows[mask]["act"][:],
    "deeplake, a column with the mask": rows["act"][mask],
}
for name, found in seen.items():
    seen[name] = found.tolist()
    print(f"seen: {name}: {seen[name]}")
right, numbered, *masked = seen.values()
raise SystemExit(not (right == numbered and all(found == [0.0] * 7 + [0.1] * 3 for found in masked)))
PY
