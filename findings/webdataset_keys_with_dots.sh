#!/usr/bin/env bash
# webdataset: samples with dots in their keys, as hookpoints have, are read as one; fields that differ in case are written and cannot be read.
set -euo pipefail
source "$(dirname "$0")/environment.sh" webdataset==1.0.2 numpy==2.4.6
"$python" -W ignore - <<'PY'
import numpy as np
import webdataset

TOKENS, LAYERS = 3, 2
print(f"webdataset {webdataset.__version__}\nexpected: what TarWriter writes is what WebDataset reads: as many samples, with the keys and fields that they had")


def roundtrip(samples):
    with webdataset.TarWriter("acts.tar") as writer:
        for sample in samples:
            writer.write(sample)
    try:
        return [{name: value for name, value in sample.items() if name == "__key__" or name[0] != "_"} for sample in webdataset.WebDataset("acts.tar", shardshuffle=False)]
    except ValueError as error:
        return error


dotted = [{"__key__": f"{token:04d}/model.layers.{layer}", "npy": np.full(2, layer)} for token in range(TOKENS) for layer in range(LAYERS)]
read = roundtrip(dotted)
print(f"seen: {len(dotted)} samples with keys as {dotted[0]['__key__']!r} and the field 'npy': {len(read)} are read, the first has {sorted(read[0])}, key {read[0]['__key__']!r}")
cased = roundtrip([{"__key__": "0000", "resid_Pre.npy": np.zeros(2)}])
print(f"seen: the field 'resid_Pre.npy' is read as {[name for name in cased[0] if name != '__key__']}")
error = roundtrip([{"__key__": "0000", "Q.npy": np.zeros(2), "q.npy": np.ones(2)}])
print(f"seen: the fields 'Q.npy' and 'q.npy': {type(error).__name__}")
merged = len(read) == TOKENS and sorted(read[0]) == ["__key__", "layers.0.npy", "layers.1.npy"]
raise SystemExit(not (merged and list(cased[0]) == ["__key__", "resid_pre.npy"] and isinstance(error, ValueError)))
PY
