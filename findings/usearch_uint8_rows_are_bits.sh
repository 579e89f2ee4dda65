#!/usr/bin/env bash
# usearch takes a numpy array of uint8 for packed bits: of a row of 64 codes it keeps the bits of the first 8, also in an index of dtype="u8".
set -euo pipefail
source "$(dirname "$0")/environment.sh" usearch==2.26.6 numpy==2.4.6
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from usearch.index import Index

ROWS, WIDTH, NEIGHBOURS = 300, 64, 5
rng = np.random.default_rng(0)
decoder = rng.integers(0, 256, (ROWS, WIDTH), dtype=np.uint8)
distances = ((decoder[:, None].astype(int) - decoder[None].astype(int)) ** 2).sum(2)
truth = np.argsort(distances, 1)[:, :NEIGHBOURS]
print(f"usearch {version('usearch')}, {ROWS} rows of {WIDTH} codes, as a quantized decoder has them\nexpected: an index of uint8 keeps the codes that it is given, and finds their nearest")
seen = {}
for dtype, given, asked in (("u8", "uint8", None), ("f32", "uint8", None), ("u8", "uint8", "u8"), ("f32", "float32", None)):
    index, rows, kind = Index(ndim=WIDTH, metric="l2sq", dtype=dtype), decoder.astype(given), {} if asked is None else {"dtype": asked}
    index.add(np.arange(ROWS), rows, **kind)
    found = index.search(rows, NEIGHBOURS, exact=True, **kind).keys
    share = float(np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(found, truth, strict=True)]))
    stored = np.array([index.get(row) for row in range(ROWS)])
    bits = np.array_equal(stored, np.unpackbits(decoder[:, : WIDTH // 8], axis=1))
    seen[dtype, given, asked] = bits, np.array_equal(stored, decoder), share == 1
    name = f"dtype={dtype!r}, rows of {given}" + (f", add and search with dtype={asked!r}" if asked else "")
    print(f"seen: {name}: row 0 begins {decoder[0, :3].tolist()}, stored is {stored[0, :3].tolist()}; it found {share:.0%} of the nearest {NEIGHBOURS}")
whole, cut = (False, True, True), (True, False, False)
raise SystemExit(list(seen.values()) != [cut, cut, whole, whole])
PY
