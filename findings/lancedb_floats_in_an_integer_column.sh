#!/usr/bin/env bash
# lancedb's add drops the decimals of what goes into an integer column, in silence, and a first row with 0 makes it one: activations or losses added later are all whole; pyarrow and pylance refuse it.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 pyarrow==26.0.1 pylance==14.0.2 lancedb==0.40.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import lance
import lancedb
import pyarrow as pa

first, later = [{"latent": 0, "max_act": 0}], [{"latent": 1, "max_act": 0.75}, {"latent": 2, "max_act": 2.9}]
print(f"lancedb {version('lancedb')}, pylance {version('pylance')}\nexpected: numbers that are not whole are kept, or are refused by a column of integers, as numbers that are too large are")
table = lancedb.connect("folder").create_table("latents", first)
table.add(later)
table.add(pa.Table.from_pylist(later))
column = table.to_arrow()["max_act"]
print(f"seen: of 0, then 0.75 and 2.9, once as dicts and once as a pyarrow table, {column.to_pylist()} is read, {column.type}")


def refused(what):
    try:
        what()
    except Exception as error:
        return type(error).__name__
    return "nothing"


rows = lance.write_dataset(pa.Table.from_pylist(first), "rows.lance")
ways = {
    "lancedb's add of 1e30": lambda: table.add([{"latent": 3, "max_act": 1e30}]),
    "lancedb's add of NaN": lambda: table.add([{"latent": 3, "max_act": float("nan")}]),
    "pylance's insert of 0.75 and 2.9": lambda: rows.insert(pa.Table.from_pylist(later)),
    "pyarrow's cast of 0.75 and 2.9": lambda: pa.Table.from_pylist(later).cast(pa.Table.from_pylist(first).schema),
}
errors = {name: refused(way) for name, way in ways.items()}
for name, error in errors.items():
    print(f"seen: {name} raises {error}")
raise SystemExit(not (column.to_pylist() == [0, 0, 2, 0, 2] and "nothing" not in errors.values()))
PY
