#!/usr/bin/env bash
# overcomplete's AsyncTensorDataset: each file's rows beyond full batches are left out, so files under 2,048 rows give none, nor do unreadable ones.
set -euo pipefail
source "$(dirname "$0")/environment_overcomplete.sh"
"$python" -W ignore - <<'PY'
import tempfile
from importlib.metadata import version

import torch
from overcomplete.data import AsyncTensorDataset

FILES, ROWS, WIDTH = 4, 2000, 8
print(f"overcomplete {version('overcomplete')}, {FILES} files of {ROWS} activations\nexpected: all {FILES * ROWS} rows, or all but a last batch; an error where a file is none")
seen = {}
with tempfile.TemporaryDirectory() as folder:
    for number in range(FILES):
        torch.save(torch.randn(ROWS, WIDTH), f"{folder}/{number}.pt")
    for batch in (None, 1500, 500):
        data = AsyncTensorDataset(folder, **({} if batch is None else {"batch_size": batch}))
        seen[batch] = sum(len(rows) for rows in data)
        print(f"seen: batch_size {batch or f'{data.batch_size}, the default'}: {seen[batch]} rows, no error")
    torch.save({"activations": torch.randn(ROWS, WIDTH)}, f"{folder}/0.pt")
    with open(f"{folder}/1.pt", "wb") as file:
        file.write(b"cut short")
    seen["two of them no tensors"] = sum(len(rows) for rows in AsyncTensorDataset(folder, batch_size=500))
    print(f"seen: two of the files hold no tensor: {seen['two of them no tensors']} rows, no error")
raise SystemExit(seen != {None: 0, 1500: 1500 * FILES, 500: ROWS * FILES, "two of them no tensors": 2 * ROWS})
PY
