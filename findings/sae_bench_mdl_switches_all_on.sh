#!/usr/bin/env bash
# SAEBench's MDL quantizes a latent that is off to the middle of its first bin: each that ever fires is on, and the error is of that and not of the bins.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sae-lens==6.54.12 tabulate==0.10.0 \
    collectibles==0.1.5 loguru==0.7.3
# It asks for numpy below 2 and for torchvision, gigabytes beside another torch, neither of which this needs.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps sae-bench==0.6.0; fi
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from sae_bench.evals.mdl.main import build_bins, quantize_features_to_bin_midpoints

TOKENS, LATENTS, WIDTH, K, BINS = 512, 1024, 64, 8, 16
torch.manual_seed(0)
decoder = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH), dim=1)
code = torch.zeros(TOKENS, LATENTS)
code.scatter_(1, torch.rand(TOKENS, LATENTS).topk(K).indices, 1 + torch.rand(TOKENS, K))
x = code @ decoder
bins = build_bins(torch.zeros(LATENTS), code.max(0).values, num_bins=BINS)
quantized = quantize_features_to_bin_midpoints(code, bins)
alone = quantized * (code > 0)


def unexplained(what):
    return ((what @ decoder - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()


used = int((code.max(0).values > 0).sum())
before, after = ((each != 0).sum(1).float().mean().item() for each in (code, quantized))
print(f"sae-bench {version('sae-bench')}: {K} of {LATENTS} latents are on, their activations quantized to {BINS} bins")
print(f"expected: {before:g} of them are on; what is not explained is the bins' share, {unexplained(alone):.4f}")
print(f"seen: {after:g} are on, all {used} that fire for some token; {unexplained(quantized):.2f} is not explained")
raise SystemExit(not (before == K and after == used and unexplained(alone) < 0.005 and unexplained(quantized) > 0.1))
PY
