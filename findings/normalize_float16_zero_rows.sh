#!/usr/bin/env bash
# F.normalize and cosine_similarity in float16: their eps is 0 there, so a row of zeros, as a dead latent's, is NaN; in bfloat16 it is not.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0
"$python" -W ignore - <<'PY'
import torch
import torch.nn.functional as F

torch.manual_seed(0)
print(f"torch {torch.__version__}\nexpected: eps is there to avoid a division by zero, so a zero row is normalised to zeros, and its cosine is 0")
seen = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    decoder = torch.randn(4, 8).to(dtype)
    decoder[2] = 0
    unit = F.normalize(decoder, dim=1)
    cosines = F.cosine_similarity(decoder[:, None], decoder[None], dim=-1)
    gradient = torch.autograd.grad(F.normalize(leaf := decoder.clone().requires_grad_(), dim=1).sum(), leaf)[0]
    values = {"normalize": unit, "its gradient": gradient, "cosine_similarity": cosines}
    seen[dtype] = {name: value.isnan().sum().item() for name, value in values.items()}
    print(f"seen: {str(dtype).removeprefix('torch.')}: NaN: " + ", ".join(f"{n} of {values[name].numel()} in {name}" for name, n in seen[dtype].items()))
print(f"seen: eps in float16: {torch.tensor(1e-12).half().item()} for normalize, {torch.tensor(1e-8).half().item()} for cosine_similarity")
none = {"normalize": 0, "its gradient": 0, "cosine_similarity": 0}
raise SystemExit(not (seen[torch.float32] == seen[torch.bfloat16] == none and seen[torch.float16]["normalize"] == 8 and seen[torch.float16]["cosine_similarity"] == 7))
PY
