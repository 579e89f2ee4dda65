#!/usr/bin/env bash
# dictionary-learning's BatchTopK after a run of up to 1000 steps: at inference every positive activation stays.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 dictionary-learning==0.1.0
# It is pulled in, not needed, and does not load beside a torch for CPUs alone.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip uninstall --quiet --yes torchvision; fi
"$python" - <<'PY'
from importlib.metadata import version

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

K, STEPS, LATENTS = 4, 200, 256
torch.manual_seed(0)
directions = torch.nn.functional.normalize(torch.randn(64, 32), dim=1)


def activations(tokens):
    return (torch.rand(tokens, 64) * (torch.rand(tokens, 64) < 0.05)) @ directions


names = {"layer": 0, "lm_name": "given activations", "device": "cpu"}
trainer = BatchTopKTrainer(STEPS, 32, LATENTS, K, **names, warmup_steps=20, seed=0)
for step in range(STEPS):
    trainer.update(step, activations(512))
x = activations(2048)
threshold = trainer.ae.threshold.item()
trained = (trainer.ae.encode(x, use_threshold=False) > 0).float().sum(1).mean().item()
inference = (trainer.ae.encode(x) > 0).float().sum(1).mean().item()
print(f"dictionary-learning {version('dictionary-learning')}, BatchTopKTrainer of {STEPS} steps, its defaults, k {K}")
print(f"expected: about {K} latents of a token at inference, as in training ({trained:.1f})")
print(f"seen: a threshold of {threshold:g}, and {inference:.1f} latents of a token")
raise SystemExit(not (threshold == -1.0 and abs(trained - K) < 0.5 and inference > 5 * K))
PY
