#!/usr/bin/env bash
# delphi's cache in splits, five by default: activations are float16, so large ones are infinite, and a split where nothing fires is an error.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sentence-transformers==6.2.0 faiss-cpu==1.15.1 \
    asyncer==0.0.18 blobfile==3.3.0 jaxtyping==0.3.11 orjson==3.13.0 simple-parsing==0.1.9
# It asks for vLLM too, gigabytes that are used for explaining alone.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps eai-delphi==0.1.3; fi
"$python" -W ignore - 2>/dev/null <<'PY'
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from delphi.latents.cache import LatentCache
from safetensors.numpy import load_file

WIDTH, LARGE = 10, 70000.0
tokens = torch.zeros(2, 4, dtype=torch.long)
latents = torch.zeros(2, 4, WIDTH)
latents[0, 1, 2], latents[1, 2, 3] = LARGE, 0.3
cache = LatentCache(torch.nn.Identity(), {}, batch_size=2)
cache.width = WIDTH
cache.cache.add(latents, tokens, 0, "layer")
cache.cache.save()
print(f"eai-delphi {version('eai-delphi')}, {WIDTH} latents, two of which fire, with {LARGE:g} and 0.3")
print("expected: the same activations whether they are saved whole or in splits")
with tempfile.TemporaryDirectory() as folder:
    cache.save(Path(folder))
    whole = load_file(f"{folder}/layer.safetensors")["activations"]
    print(f"seen: save: {whole.dtype} {whole.tolist()}")
    cache.save_splits(1, Path(folder))
    one = load_file(f"{folder}/layer/0_{WIDTH - 1}.safetensors")["activations"]
    print(f"seen: save_splits(1): {one.dtype} {one.tolist()}")
    try:
        cache.save_splits(5, Path(folder))
        failed = False
    except ValueError as error:
        failed = True
        print(f"seen: save_splits(5): ValueError: {error}")
raise SystemExit(not (whole[0] == LARGE and str(one[0]) == "inf" and failed))
PY
