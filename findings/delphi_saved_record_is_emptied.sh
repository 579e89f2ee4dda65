#!/usr/bin/env bash
# delphi's LatentRecord: save takes its examples and its latent out of the record that was saved, and a second save fails.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sentence-transformers==6.2.0 faiss-cpu==1.15.1 \
    asyncer==0.0.18 blobfile==3.3.0 jaxtyping==0.3.11 orjson==3.13.0 simple-parsing==0.1.9
# It asks for vLLM too, gigabytes that are used for explaining alone.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps eai-delphi==0.1.3; fi
"$python" -W ignore - 2>/dev/null <<'PY'
import os
from importlib.metadata import version

import torch
from delphi.latents import ActivatingExample, Latent, LatentRecord

record = LatentRecord(Latent("layer", 3), explanation="numbers")
record.examples = record.train = [ActivatingExample(torch.tensor([5, 6]), torch.tensor([0.5, 0.0]))]
names = ["latent", "examples", "train", "test", "explanation", "max_activation"]
print(f"eai-delphi {version('eai-delphi')}\nexpected: a record that was saved is as before")


def there():
    return [name for name in names if hasattr(record, name)]


before = there()
record.save(".")
after = there()
print(f"seen: {[name for name in os.listdir() if name.endswith('.json')]} was written")
print(f"seen: before it had {before}, after {after}")
try:
    record.save(".")
    again = False
except (AttributeError, KeyError) as error:
    again = True
    print(f"seen: saved again: {type(error).__name__}: {error}")
raise SystemExit(not (before == names and after == ["explanation"] and again))
PY
