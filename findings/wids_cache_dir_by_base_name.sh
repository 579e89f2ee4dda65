#!/usr/bin/env bash
# wids with cache_dir: a shard is kept under the last part of its address, so test/000.tar after train/000.tar is not read at all: the test set's samples are the training set's.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 wids==0.1.11
"$python" -W ignore - 2>/dev/null <<'PY'
import io
import os
import tarfile
from importlib.metadata import version

import wids

print(f"wids {version('wids')}\nexpected: each set's own samples, as without cache_dir")
SETS = {"train": ("train/000.tar", "train/001.tar"), "test": ("test/000.tar",), "both": ("train/000.tar", "test/000.tar")}
for path in {path for paths in SETS.values() for path in paths}:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for row in range(2):
            text = f"{path} row {row}".encode()
            member = tarfile.TarInfo(f"{row:04d}.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))


def texts(paths, **places):
    dataset = wids.ShardListDataset([{"url": path, "nsamples": 2} for path in paths], transformations=[], **places)
    return [dataset[index][".txt"].read().decode() for index in range(len(dataset))]


os.environ["WIDS_CACHE"] = "default"
seen = {}
for name, paths in SETS.items():
    right = [f"{path} row {row}" for path in paths for row in range(2)]
    for way, places in (("the default cache", {}), ("cache_dir", {"cache_dir": "given"})):
        found = texts(paths, **places)
        seen[name, way] = found == right
        print(f"seen: {name} with {way}: {', '.join(found)}")
wrong = [key for key, same in seen.items() if not same]
raise SystemExit(wrong != [("test", "cache_dir"), ("both", "cache_dir")])
PY
