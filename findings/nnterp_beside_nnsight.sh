#!/usr/bin/env bash
# nnterp as pip installs it: it asks for nnsight 0.6 or later, gets 0.8, whose modules have other names, and cannot be imported.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 nnterp==1.3.0 nnsight==0.8.1
"$python" -W ignore - <<'PY'
import subprocess
import sys
from importlib.metadata import requires, version

print(f"nnterp {version('nnterp')}, nnsight {version('nnsight')}\nexpected: what pip installs together can be imported, or pip check says why not")
asks = [each for each in requires("nnterp") if each.startswith("nnsight")]
check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True).stdout
complaints = [line for line in check.splitlines() if "nnsight" in line]
last = {}
for name in ("nnsight", "nnterp"):
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True)
    last[name] = done.stderr.strip().splitlines()[-1] if done.returncode else "imported"
    print(f"seen: import {name}: {last[name]}")
print(f"seen: what nnterp says that it requires: {asks}; pip check of nnsight: {complaints}")
raise SystemExit(not (last["nnsight"] == "imported" and "No module named 'nnsight." in last["nnterp"] and not complaints))
PY
