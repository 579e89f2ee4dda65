#!/usr/bin/env bash
# voyager with Space.InnerProduct: get_distance depends on the longest row added so far, and is off by up to its square; of rows of mixed lengths, added as they come, search finds a third; added by length, all.
set -euo pipefail
source "$(dirname "$0")/environment.sh" numpy==2.4.6 voyager==2.2.3
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import voyager

ROWS, WIDTH, K, DEPTH = 2000, 32, 10, 50
print(f"voyager {version('voyager')}; {ROWS} rows, the {K} largest inner products of 50 queries, query_ef={DEPTH}")
print("expected: get_distance is 1 minus the inner product, as the distances of query are; the order in which rows are added hardly matters")
rng = np.random.default_rng(0)
gauss = rng.standard_normal((ROWS, WIDTH), dtype=np.float32)
queries = rng.standard_normal((50, WIDTH), dtype=np.float32)
unit = gauss / np.linalg.norm(gauss, axis=1, keepdims=True)
mixed = unit * np.exp(rng.standard_normal((ROWS, 1), dtype=np.float32))
mixed *= 5 / np.linalg.norm(mixed, axis=1).max()
shortest_first = mixed[np.argsort(np.linalg.norm(mixed, axis=1))]
seen = {}
ways = {"rows of length 1": unit, "rows of lengths up to 5": mixed, "the same, shortest first": shortest_first, "the same, longest first": shortest_first[::-1]}
for name, rows in ways.items():
    rows = np.ascontiguousarray(rows)
    products = queries @ rows.T
    index = voyager.Index(voyager.Space.InnerProduct, WIDTH, M=16, ef_construction=200)
    index.add_items(rows, num_threads=1)
    neighbors, distances = index.query(queries, K, num_threads=1, query_ef=DEPTH)
    largest = np.argsort(-products, axis=1)[:, :K]
    found = np.mean([len(set(mine.tolist()) & set(best.tolist())) / K for mine, best in zip(neighbors, largest)])
    of_query = np.abs(distances - (1 - np.take_along_axis(products, neighbors.astype(int), 1))).max()
    pairs = [(index.get_distance(rows[a], rows[a + 1]), float(1 - rows[a] @ rows[a + 1])) for a in range(100)]
    off = max(abs(mine - right) for mine, right in pairs)
    seen[name] = found, of_query, off
    first, exact = pairs[0]
    print(
        f"seen: {name}: {found:.0%} of the largest found; query's distances off by up to {of_query:.0e},"
        f" get_distance's by up to {off:.1e} (of the first pair it is {first:.2f}, 1 minus the product {exact:.2f})"
    )
same = all(of_query < 1e-4 for _, of_query, _ in seen.values())
right = seen["rows of length 1"][2] < 1e-4 and all(found > 0.95 for name, (found, _, _) in seen.items() if name != "rows of lengths up to 5")
wrong = seen["rows of lengths up to 5"][0] < 0.6 and all(off > 10 for name, (_, _, off) in seen.items() if name != "rows of length 1")
raise SystemExit(not (same and right and wrong))
PY
