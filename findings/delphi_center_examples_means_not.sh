#!/usr/bin/env bash
# delphi's center_examples, which is True by default: it leaves the windows as they are cut, and False centres them.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sentence-transformers==6.2.0 faiss-cpu==1.15.1 \
    asyncer==0.0.18 blobfile==3.3.0 jaxtyping==0.3.11 orjson==3.13.0 simple-parsing==0.1.9
# It asks for vLLM too, gigabytes that are used for explaining alone.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps eai-delphi==0.1.3; fi
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from delphi.config import ConstructorConfig
from delphi.latents import Latent, LatentRecord, constructor
from delphi.latents.latents import ActivationData

ROWS, LENGTH, WINDOW = 64, 256, 32


class Tokens:
    def batch_decode(self, tokens):
        return [str(int(token)) for token in tokens]


# One token of each window, at a random place, activates the latent.
windows = torch.arange(ROWS * LENGTH // WINDOW)
flat = windows * WINDOW + torch.randint(0, WINDOW, windows.shape, generator=torch.Generator().manual_seed(0))
locations = torch.stack([flat // LENGTH, flat % LENGTH, torch.zeros_like(flat)], 1)
active = ActivationData(locations, torch.linspace(0.1, 1, len(flat)))
print(f"eai-delphi {version('eai-delphi')}, windows of {WINDOW} tokens, one of which is active")
print("expected, as center_examples says of itself: True puts the active token at one place of all examples, False at any")
places = {}
for center in (True, False):
    record = LatentRecord(Latent("layer", 0))
    config = ConstructorConfig(center_examples=center, example_ctx_len=WINDOW)
    record = constructor(record, active, config, torch.arange(ROWS * LENGTH).view(ROWS, LENGTH), Tokens())
    places[center] = len({int(example.activations.argmax()) for example in record.examples})
    print(f"seen: center_examples={center}: in {len(record.examples)} examples the active token is at {places[center]} places")
raise SystemExit(not (ConstructorConfig().center_examples and places[True] == WINDOW and places[False] == 1))
PY
