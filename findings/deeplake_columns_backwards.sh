#!/usr/bin/env bash
# deeplake's columns sliced backwards: reading gives nothing, and writing puts the values into other rows, in the other order; of the data set the same slice is right.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 deeplake==4.7.4
"$python" -W ignore - <<'PY'
import deeplake
import numpy as np
from deeplake import types

print(f"deeplake {deeplake.__version__}, rows 0 to 9\nexpected: a slice means what it means in Python, read or written, or is refused")


def made():
    rows = deeplake.create(f"mem://{np.random.default_rng().integers(2**60)}")
    rows.add_column("row", types.Int64())
    rows.append({"row": np.arange(10)})
    return rows


seen = []
for name, part in (("2:5", slice(2, 5)), ("::-1", slice(None, None, -1)), ("9:6:-1", slice(9, 6, -1))):
    rows, right = made(), np.arange(10)
    column, whole, expected = rows["row"][part].tolist(), rows[part]["row"][:].tolist(), right[part].tolist()
    seen.append((column == expected, whole == expected))
    print(f"seen: [{name}] reads {column} of the column, {whole} of the data set, {expected} of numpy's array")
for name, part in (("2:5", slice(2, 5)), ("9:6:-1", slice(9, 6, -1))):
    rows, right = made(), np.arange(10)
    rows["row"][part] = right[part] = np.array([100, 101, 102])
    written = rows["row"][:].tolist()
    seen.append(written == right.tolist())
    print(f"seen: after 100, 101, 102 are assigned to [{name}], the column is {written}, numpy's array {right.tolist()}")
raise SystemExit(seen != [(True, True), (False, True), (False, True), True, False])
PY
