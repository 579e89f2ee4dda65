#!/usr/bin/env bash
# mosaicml-streaming writes the bytes of a big-endian array as they lie, and its dtype without the byte order: an int32 of 1 is read back as 16777216, a float32 of 1 as 4.6e-41.
set -euo pipefail
source "$(dirname "$0")/environment_streaming.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from streaming.base import LocalDataset, MDSWriter

print(f"mosaicml-streaming {version('mosaicml-streaming')}\nexpected: an array that is read equals the one that was written, whatever its byte order, as with np.save")
seen = {}
for dtype in ("<i4", ">i4", "<f4", ">f4"):
    array = np.array([1, 2, 3], dtype)
    with MDSWriter(out=dtype[1:] + dtype[0].replace("<", "l").replace(">", "b"), columns={"values": "ndarray"}) as writer:
        writer.write({"values": array})
    back = LocalDataset(writer.local)[0]["values"]
    np.save("array.npy", array)
    seen[dtype] = np.array_equal(back, array)
    print(f"seen: {array.tolist()} of {dtype}: {back.tolist()} of {back.dtype.str}; np.save has {np.load('array.npy').tolist()}")
raise SystemExit(list(seen.values()) != [True, False] * 2)
PY
