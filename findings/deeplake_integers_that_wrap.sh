#!/usr/bin/env bash
# deeplake's integer columns take what does not fit modulo their size, also a plain Python number and one given to a token-id column of uint16: 128,009 is read as 62,473.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 pyarrow==26.0.1 deeplake==4.7.4
"$python" -W ignore - <<'PY'
import deeplake
import numpy as np
import pyarrow as pa
from deeplake import types

rows = deeplake.create("rows")
columns = {"uint16": types.UInt16(), "int8": types.Int8(), "int64": types.Int64(), "ids": types.Array(types.UInt16(), 1)}
for name, kind in columns.items():
    rows.add_column(name, kind)
fits = {"uint16": 1, "int8": 1, "int64": 1, "ids": np.ones(2, "uint16")}
print(f"deeplake {deeplake.__version__}\nexpected: a number that a column cannot hold is refused")
given = [("uint16", 128_009), ("int8", 300), ("int64", 2.7), ("ids", np.array([128_009, 5]))]
seen = []
for column, value in given:
    rows.append({name: [value if name == column else other] for name, other in fits.items()})
    seen.append(rows[column][-1].tolist())
    kind = getattr(pa, "uint16" if column == "ids" else column)()
    try:
        pa.array(np.atleast_1d(value)).cast(kind)
        refused = False
    except pa.ArrowInvalid:
        refused = True
    print(f"seen: {value!r} given to a column of {columns[column]} is read as {seen[-1]}; pyarrow refuses to cast it: {refused}")
    seen[-1] = seen[-1], refused
print("this is the value modulo the size of the column:", 128_009 % 2**16, 300 % 2**8)
raise SystemExit(seen != [(62_473, True), (44, True), (2, True), ([62_473, 5], True)])
PY
