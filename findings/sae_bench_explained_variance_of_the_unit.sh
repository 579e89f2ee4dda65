#!/usr/bin/env bash
# SAEBench's explained_variance depends on the activations' unit: from their mean square it takes the square of their mean square.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sae-lens==6.54.12 tabulate==0.10.0
# It asks for numpy below 2 and for torchvision, gigabytes beside another torch, neither of which this needs.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps sae-bench==0.6.0; fi
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version
from types import SimpleNamespace

import torch
from sae_bench.custom_saes.relu_sae import ReluSAE
from sae_bench.evals.core.main import get_sparsity_and_variance_metrics
from transformer_lens import HookedTransformer, HookedTransformerConfig

WIDTH, KEPT, ROWS, LENGTH, BATCHES = 64, 48, 4, 32, 3
name = "blocks.0.hook_resid_pre"
sae = ReluSAE(WIDTH, 2 * WIDTH, "none", 0, torch.device("cpu"), torch.float32, name)
with torch.no_grad():
    # One latent for each coordinate's positive part and one for its negative: an identity, but for the coordinates left out.
    signed = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)]) * (torch.arange(WIDTH) < KEPT)
    sae.W_enc.copy_(signed.T), sae.W_dec.copy_(signed), sae.b_enc.zero_(), sae.b_dec.zero_()
asked = ("l2_norms", "sparsity_metrics", "variance_metrics", "featurewise_density_statistics")
print(f"sae-bench {version('sae-bench')}: an SAE that reconstructs {KEPT} of {WIDTH} coordinates, and leaves the others 0")
print("expected: the explained variance is that, in whatever unit the activations are")
seen = []
for unit in (0.1, 1.0, 10.0):
    torch.manual_seed(0)
    model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=WIDTH, n_ctx=LENGTH, d_head=8, d_vocab=500, act_fn="gelu"))
    with torch.no_grad():
        model.W_E.normal_(std=unit), model.W_pos.zero_()
    batches = [torch.randint(0, 500, (ROWS, LENGTH)) for _ in range(BATCHES)]
    x = model.W_E[torch.cat(batches)].flatten(0, 1).detach()
    left = x * (torch.arange(WIDTH) >= KEPT)
    right = 1 - (left.pow(2).sum(1).mean() / (x - x.mean(0)).pow(2).sum(1).mean()).item()
    metrics, _ = get_sparsity_and_variance_metrics(
        sae, model, SimpleNamespace(get_batch_tokens=lambda rows, given=iter(batches): next(given)),
        n_batches=BATCHES, eval_batch_size_prompts=ROWS, model_kwargs={}, **{f"compute_{each}": True for each in asked},
    )  # fmt: skip
    seen.append((right, metrics["explained_variance"], left.pow(2).sum(1).mean().item() / metrics["mse"]))
    print(f"seen: activations of norm {x.norm(dim=1).mean():.1f}: explained_variance {seen[-1][1]:.3f}, and it is {right:.3f}")
print(f"seen: mse, a mean over tokens, is {seen[-1][2]:.0f} times too small: it is divided by the {ROWS * LENGTH} tokens of a batch once more")
ours, theirs, times = zip(*seen)
near = all(abs(each - KEPT / WIDTH) < 0.02 for each in ours)
raise SystemExit(not (near and abs(theirs[0] - ours[0]) < 0.02 and theirs[2] > 1 and abs(times[0] - ROWS * LENGTH) < 1))
PY
