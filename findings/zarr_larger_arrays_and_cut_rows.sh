#!/usr/bin/env bash
# zarr: a larger array assigned to a smaller one is cut, without an error; rows that resize cut off are back when it grows again.
set -euo pipefail
source "$(dirname "$0")/environment.sh" zarr==3.1.6 numpy==2.4.6
"$python" -W ignore - <<'PY'
import numpy as np
import zarr

print(f"zarr {zarr.__version__}\nexpected: as with numpy, a value of another shape is an error; rows that were cut off come back as the fill value, 0")
acts = np.arange(24.0, dtype=np.float32).reshape(6, 4) + 1
seen = {}
for where, rows in ((slice(None), 6), (slice(0, 2), 3), (slice(0, 2), 1), (slice(0, 3), 2)):
    stored, plain = zarr.create_array({}, shape=(4, 4), chunks=(4, 4), dtype="f4"), np.zeros((4, 4), np.float32)
    results = []
    for array in (plain, stored):
        try:
            array[where] = acts[:rows]
            results.append(array[:][:, 0].tolist())
        except (ValueError, IndexError) as error:
            results.append(type(error).__name__)
    name = f"[{'' if where.start is None else where.start}:{'' if where.stop is None else where.stop}] = {rows} rows"
    seen[name] = results
    print(f"seen: array of 4 rows, {name}: numpy {results[0]}, zarr {results[1]} (first column)")
array = zarr.create_array({}, shape=(6, 4), chunks=(4, 4), dtype="f4")
array[:] = acts
array.resize((1, 4))
array.resize((6, 4))
back = array[:, 0].tolist()
print(f"seen: six rows, cut to one, and grown to six again: {back} (first column); chunks have 4 rows")
cut = seen["[:] = 6 rows"] == ["ValueError", [1, 5, 9, 13]] and seen["[0:2] = 3 rows"] == ["ValueError", [1, 5, 0, 0]]
raise SystemExit(not (cut and back == [1, 5, 9, 13, 0, 0]))
PY
