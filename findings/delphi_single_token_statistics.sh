#!/usr/bin/env bash
# delphi's statistics of a cache: whether a latent has one token is read off its weakest activations, and not its strongest.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sentence-transformers==6.2.0 faiss-cpu==1.15.1 \
    asyncer==0.0.18 blobfile==3.3.0 jaxtyping==0.3.11 orjson==3.13.0 simple-parsing==0.1.9
# It asks for vLLM too, gigabytes that are used for explaining alone.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps eai-delphi==0.1.3; fi
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from delphi.latents.cache import generate_statistics_cache

ROWS, LENGTH, FIRES, ONE = 10, 100, 400, 7
others = torch.randint(100, 1000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
places = torch.arange(FIRES)
locations = torch.stack([places // LENGTH, places % LENGTH, torch.zeros_like(places)], 1)
strength = torch.linspace(0.1, 1, FIRES)
print(f"eai-delphi {version('eai-delphi')}, one latent, {FIRES} activations, half of them on one token")
print("expected: a latent whose strongest activations are all on one token counts as one of a single token, not one whose weakest are")
seen = {}
for half, mine in (("strongest", slice(FIRES // 2, FIRES)), ("weakest", slice(0, FIRES // 2))):
    tokens = others.clone()
    tokens.view(-1)[mine] = ONE
    found = generate_statistics_cache(tokens, locations, strength, width=1)
    seen[half] = found.frac_weak_single_token, found.frac_strong_single_token
    print(f"seen: the {half} half on one token: single-token latents, weak {seen[half][0]:.0%}, strong {seen[half][1]:.0%}")
raise SystemExit(seen != {"strongest": (0.0, 0.0), "weakest": (0.0, 1.0)})
PY
