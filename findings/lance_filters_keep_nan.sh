#!/usr/bin/env bash
# lance: a filter that asks for more than a threshold keeps rows that are NaN, also one written as a pyarrow expression, which pyarrow itself and numpy leave out; x != x finds none of them.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 pyarrow==26.0.1 pylance==14.0.2
"$python" -W ignore - <<'PY'
import lance
import numpy as np
import pyarrow as pa
import pyarrow.dataset
from pyarrow import compute as pc

table = pa.table({"row": range(5), "act": [0.0, 0.5, float("nan"), 2.0, -1.0]})
rows = lance.write_dataset(table, "table.lance")
plain = pa.dataset.dataset(table)
acts = table["act"].to_numpy()
print(f"lance {lance.__version__}, pyarrow {pa.__version__}, activations {acts.tolist()}")
print("expected: NaN is not more than any number, and differs from itself, so each way of asking finds the rows that numpy finds")
act = pc.field("act")
asked = {"act > 1": (act > 1, acts > 1), "act >= 1e30": (act >= 1e30, acts >= 1e30), "act != act": (act != act, acts != acts)}
seen = {}
for name, (expression, mask) in asked.items():
    finds = {
        "numpy": np.flatnonzero(mask).tolist(),
        "pyarrow": plain.to_table(filter=expression)["row"].to_pylist(),
        "lance, the same expression": rows.to_table(filter=expression)["row"].to_pylist(),
        "lance, as text": rows.to_table(filter=name)["row"].to_pylist(),
    }
    seen[name] = list(finds.values())
    print(f"seen: {name}: rows " + "; ".join(f"{found} with {way}" for way, found in finds.items()))
raise SystemExit(seen != {"act > 1": [[3], [3], [2, 3], [2, 3]], "act >= 1e30": [[], [], [2], [2]], "act != act": [[2], [2], [], []]})
PY
