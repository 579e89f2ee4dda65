#!/usr/bin/env bash
# circuit-tracer: the loader of Gemma Scope 2's cross-layer transcoders leaves out the last layer, and then fails.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 circuit-tracer==0.5.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt
from safetensors.torch import save_file

LAYERS, LATENTS, WIDTH = 3, 5, 4
print(f"circuit-tracer {version('circuit-tracer')}\nexpected: {{layer: file}} of {LAYERS} layers gives {LAYERS} layers")
paths = {}
for layer in range(LAYERS):
    tensors = {
        "w_enc": torch.randn(WIDTH, LATENTS), "b_enc": torch.zeros(LATENTS), "threshold": torch.ones(LATENTS),
        "w_dec": torch.randn(LATENTS, LAYERS, WIDTH), "b_dec": torch.zeros(WIDTH),
    }
    paths[layer] = f"layer_{layer}.safetensors"
    save_file(tensors, paths[layer])
device = torch.device("cpu")
try:
    print(f"seen: {load_gemma_scope_2_clt(paths, device=device).n_layers} layers")
    failed = False
except RuntimeError as error:
    print(f"seen: {str(error).splitlines()[1].strip()}")
    failed = True
further = load_gemma_scope_2_clt(paths | {LAYERS: "no-such-file"}, device=device)
print(f"seen: with a further layer, whose file does not exist, {further.n_layers} layers")
raise SystemExit(not (failed and further.n_layers == LAYERS))
PY
