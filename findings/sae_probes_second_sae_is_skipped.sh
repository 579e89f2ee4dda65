#!/usr/bin/env bash
# sae-probes: results are filed by model, hook and data set and not by dictionary, so a second one's evaluation is skipped and its results are the first one's.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 sae-lens==6.54.12 transformer-lens==3.9.0 \
    pandas==3.1.1 scikit-learn==1.9.1 zstandard==0.25.0 xgboost-cpu==3.2.0
# It asks for a pandas below 3, and for an xgboost with hundreds of MB of CUDA, which one of its baselines uses.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps sae-probes==0.4.2; fi
"$python" -W ignore - 2>/dev/null <<'PY'
import json
from importlib.metadata import version
from pathlib import Path

import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_probes.run_sae_evals import run_sae_evals
from sae_probes.utils_data import get_yvals

MODEL, HOOK, DATASET, WIDTH = "a-model", "blocks.3.hook_resid_post", "5_hist_fig_ismale", 16
labels = torch.tensor(get_yvals(DATASET))
torch.manual_seed(0)
# As the package keeps a model's activations: the first column tells the label, all others are noise.
activations = torch.randn(len(labels), WIDTH)
activations[:, 0] += 3 * labels
folder = Path("cache") / f"model_activations_{MODEL}"
folder.mkdir(parents=True)
torch.save(activations, folder / f"{DATASET}_{HOOK}.pt")


def sae_that_reads(column):
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=4))
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.W_enc[column] = 1
    return sae


def auc(sae, results):
    run_sae_evals(
        sae, MODEL, HOOK, "l2", "normal", ks=[1], results_path=results, model_cache_path="cache", datasets=[DATASET], device="cpu"
    )
    (file,) = Path(results).rglob("*.json")
    return json.loads(file.read_text())[0]["test_auc"]


print(f"sae-probes {version('sae-probes')}: two SAEs on {len(labels)} activations, one with the label in its latents, one without")
telling, blind = sae_that_reads(0), sae_that_reads(1)
expected = auc(telling, "first"), auc(blind, "second")
print(f"expected: test AUC {expected[0]:.2f} and {expected[1]:.2f}, as with a results_path for each")
seen = auc(telling, "both"), auc(blind, "both")
print(f"seen: with the same results_path: {seen[0]:.2f} and {seen[1]:.2f}")
raise SystemExit(not (expected[0] > 0.9 and expected[1] < 0.65 and seen == (expected[0], expected[0])))
PY
