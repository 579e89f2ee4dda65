#!/usr/bin/env bash
# TransformerLens 2 as pip installs it: its numpy is below 2, pyarrow needs 2 without saying so, and it cannot be imported.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformer-lens==2.17.0 pyarrow==26.0.1
"$python" - <<'PY'
import subprocess
import sys
from importlib.metadata import requires, version

print(f"transformer-lens {version('transformer-lens')}, pyarrow {version('pyarrow')}, numpy {version('numpy')}")
print("expected: what pip installs together can be imported, or pip check says why not")
says = [each for each in requires("pyarrow") or [] if "extra" not in each]
print(f"seen: what pyarrow says that it requires: {says}")
check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True).stdout
print("seen: pip check of pyarrow and numpy:", [line for line in check.splitlines() if "pyarrow" in line or "numpy" in line])
done = subprocess.run([sys.executable, "-c", "import transformer_lens"], capture_output=True, text=True)
last = done.stderr.strip().splitlines()[-1] if done.returncode else "imported"
print(f"seen: import transformer_lens: {last}")
raise SystemExit(not (done.returncode and "requires NumPy 2.0" in last and not says))
PY
