#!/usr/bin/env bash
# HDF5's lossy filters (scaleoffset, Zfp, SZ3) write NaN as an ordinary number; Zfp does so with infinity, and its neighbours leave the accuracy asked for.
set -euo pipefail
source "$(dirname "$0")/environment.sh" h5py==3.16.0 hdf5plugin==7.1.0 numpy==2.4.6
"$python" -W ignore - <<'PY'
import h5py
import hdf5plugin
import numpy as np

ROWS, WIDTH, BOUND = 64, 32, 1e-3
rng = np.random.default_rng(0)
acts = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
filters = {"scaleoffset=3": {"scaleoffset": 3}, "Zfp(accuracy=1e-3)": hdf5plugin.Zfp(accuracy=BOUND), "SZ3(absolute=1e-3)": hdf5plugin.SZ3(absolute=BOUND), "gzip": {"compression": "gzip"}}
print(f"h5py {h5py.__version__}, hdf5plugin {hdf5plugin.version}, activations from {acts.min():.1f} to {acts.max():.1f}")
print(f"expected: numbers come back within {BOUND}; NaN comes back as NaN and infinity as infinity, or the write is refused")
seen = {}
for name, options in filters.items():
    for odd in (None, np.nan, np.inf):
        given = acts.copy()
        if odd is not None:
            given[3, 5] = odd
        with h5py.File("acts.h5", "w") as file:
            file.create_dataset("acts", data=given, chunks=given.shape, **options)
        with h5py.File("acts.h5") as file:
            read = file["acts"][:]
        off = float(np.abs(read - given)[np.isfinite(given)].max())
        seen[name, str(odd)] = off <= BOUND, odd is None or str(read[3, 5]) == str(odd)
        tail = "" if odd is None else f"; {odd} comes back as {read[3, 5]}"
        print(f"seen: {name}, {'finite numbers' if odd is None else f'one {odd}'}: {np.isfinite(read).mean():.0%} are finite, finite ones are off by {off:.1g}{tail}")
right, wrong = (True, True), (True, False)
expected = {(name, odd): right if name == "gzip" or odd == "None" else wrong for name in filters for odd in ("None", "nan", "inf")}
expected |= {("Zfp(accuracy=1e-3)", "inf"): (False, False), ("scaleoffset=3", "inf"): right, ("SZ3(absolute=1e-3)", "inf"): right}
raise SystemExit(seen != expected)
PY
