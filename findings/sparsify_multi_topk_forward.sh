#!/usr/bin/env bash
# eai-sparsify with multi_topk: the forward's reconstruction and latents are those of 4 k latents, though encode keeps k.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 eai-sparsify==1.3.3
"$python" - <<'PY'
from importlib.metadata import version

import torch
from sparsify import SparseCoder, SparseCoderConfig

K = 4
print(f"eai-sparsify {version('eai-sparsify')}\nexpected: multi_topk adds a loss; the forward's output has k = {K} latents of a token")
x, seen = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)), {}
for multi in (False, True):
    torch.manual_seed(0)
    sae = SparseCoder(16, SparseCoderConfig(num_latents=64, k=K, multi_topk=multi))
    with torch.no_grad():
        output, code = sae(x), sae.encode(x)
        recon = sae.decode(code.top_acts, code.top_indices)
    variance = (x - x.mean(0)).pow(2).sum()
    of_output = ((x - output.sae_out).pow(2).sum() / variance).item()
    same = torch.equal(output.sae_out, recon)
    seen[multi] = output.latent_indices.shape[1], same
    print(f"seen: multi_topk {multi}: {seen[multi][0]} latents in the output, {code.top_indices.shape[1]} in encode's")
    print(f"seen: its fvu says {output.fvu:.4f}, that of its sae_out is {of_output:.4f}; sae_out is decode(encode(x)): {same}")
raise SystemExit(seen != {False: (K, True), True: (4 * K, False)})
PY
