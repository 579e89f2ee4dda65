#!/usr/bin/env bash
# fsspec reads the first member of a .zip archive, and says nothing of the others.
set -euo pipefail
source "$(dirname "$0")/environment.sh" fsspec==2026.9.0
"$python" - <<'PY'
import zipfile

import fsspec

with zipfile.ZipFile("two.zip", "w") as archive:
    archive.writestr("a.txt", "one")
    archive.writestr("b.txt", "two")
with fsspec.open("two.zip", "rb", compression="zip") as file:
    seen = file.read()
print(f"fsspec {fsspec.__version__}\nexpected: both members, or an error\nseen: {seen}")
raise SystemExit(seen != b"one")
PY
