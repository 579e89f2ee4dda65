#!/usr/bin/env bash
# mosaicml-streaming's columns of one number, as "uint16" for token ids: a numpy number that does not fit is wrapped in silence, so id 128,009 is read as 62,473; Python's number and an array are refused.
set -euo pipefail
source "$(dirname "$0")/environment_streaming.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from streaming.base import LocalDataset, MDSWriter

print(f"mosaicml-streaming {version('mosaicml-streaming')}\nexpected: what is read is what was written, or writing is an error, for numpy's numbers as for Python's")


def read_back(folder, kind, value):
    try:
        with MDSWriter(out=folder, columns={"value": kind}) as writer:
            writer.write({"value": value})
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        return type(error).__name__
    return LocalDataset(folder)[0]["value"]


cases = [
    ("uint16", 50_000, np.int64(50_000)),
    ("uint16", 128_009, np.int64(128_009)),
    ("int8", 200, np.int64(200)),
]
seen = []
for number, (kind, python, numpy) in enumerate(cases):
    back = read_back(f"python{number}", kind, python), read_back(f"numpy{number}", kind, numpy)
    seen.append(back)
    print(f"seen: column {kind!r}, {python!r}: {back[0]!r}; {numpy!r}: {back[1]!r}")
array = read_back("array", "ndarray:uint16", np.array([128_009]))
print(f"seen: column 'ndarray:uint16', array([128009]): {array!r}")
fits, *others = seen
silent = others == [("OverflowError", 128_009 % 2**16), ("OverflowError", 200 - 2**8)]
raise SystemExit(not (fits == (50_000, 50_000) and silent and array == "ValueError"))
PY
