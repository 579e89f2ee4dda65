#!/usr/bin/env bash
# eai-sparsify: neither AuxK nor Multi-TopK has a gradient for the encoder, so a dead latent's encoder row never moves.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 eai-sparsify==1.3.3
"$python" - <<'PY'
from importlib.metadata import version

import torch
from sparsify import SparseCoder, SparseCoderConfig

WIDTH, LATENTS, K, TOKENS = 16, 64, 4, 50
print(f"eai-sparsify {version('eai-sparsify')}\nexpected: the gradients that autograd gives for the same forward")
torch.manual_seed(0)
x, dead = torch.randn(TOKENS, WIDTH), torch.arange(LATENTS) >= LATENTS // 2
sae = SparseCoder(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=K, multi_topk=True))


def gradients(loss):
    return torch.autograd.grad(loss, (sae.encoder.weight, sae.W_dec), retain_graph=True)


output = sae(x, dead_mask=dead)
pre_acts = torch.relu((x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias)
variance = (x - x.mean(0)).pow(2).sum()


def decoded(acts, k):
    top = acts.topk(k)
    return torch.zeros(TOKENS, LATENTS).scatter(-1, top.indices, top.values) @ sae.W_dec


error = (x - decoded(pre_acts, K) - sae.b_dec).detach()
auxk = (decoded(pre_acts.masked_fill(~dead, -torch.inf), WIDTH // 2) - error).pow(2).sum() / variance
multi = (decoded(pre_acts, 4 * K) + sae.b_dec - x).pow(2).sum() / variance
right = True
for name, theirs, plain in (("AuxK", output.auxk_loss, auxk), ("Multi-TopK", output.multi_topk_fvu, multi)):
    (encoder, decoder), (expected, same) = gradients(theirs), gradients(plain)
    print(f"seen: {name} {theirs.item():.4f}, autograd's {plain.item():.4f}")
    print(f"seen: {name}: length of the encoder's gradient {encoder.norm():.4f}, autograd's {expected.norm():.4f}")
    print(f"seen: {name}: length of the decoder's gradient {decoder.norm():.4f}, autograd's {same.norm():.4f}")
    right &= torch.allclose(theirs, plain) and torch.allclose(decoder, same, atol=1e-5)
    right &= encoder.norm().item() == 0 < expected.norm().item()
raise SystemExit(not right)
PY
