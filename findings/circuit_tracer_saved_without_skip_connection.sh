#!/usr/bin/env bash
# circuit-tracer: what to_safetensors writes has neither a cross-layer transcoder's skip connection nor a TopK; what is loaded again computes something else.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 circuit-tracer==0.5.0
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, load_relu_transcoder

LAYERS, LATENTS, WIDTH, TOKENS, K = 3, 64, 16, 8, 4
torch.manual_seed(0)
kind = {"device": torch.device("cpu"), "dtype": torch.float32}


def filled(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.25)
    return module


print(f"circuit-tracer {version('circuit-tracer')}\nexpected: to_safetensors, then the loader of its files, gives the same function")
skipping = filled(CrossLayerTranscoder(LAYERS, LATENTS, WIDTH, skip_connection=True, lazy_decoder=False, **kind))
skipping.to_safetensors("clt")
again = load_clt("clt", **kind)
inputs = torch.randn(LAYERS, TOKENS, WIDTH)
with torch.no_grad():
    latents = skipping.encode(inputs).to_sparse()
    before, after = skipping.decode(latents, inputs), again.decode(latents, inputs)
    gone = torch.allclose(before - after, inputs @ skipping.W_skip, atol=1e-4)
error = float((after - before).norm() / before.norm())
print(f"seen: cross-layer with W_skip: loaded has skip_connection={again.skip_connection}; its outputs are {error:.0%} off")
top = filled(SingleLayerTranscoder(WIDTH, LATENTS, TopK(K), 0, **kind))
top.to_safetensors("top.safetensors")
loaded = load_relu_transcoder("top.safetensors", 0, lazy_encoder=False, lazy_decoder=False, **kind)
with torch.no_grad():
    kept, fire = ((each.encode(inputs[0]) != 0).sum(-1).float().mean() for each in (top, loaded))
print(f"seen: TopK({K}): {kept:.1f} latents of a token before, {fire:.1f} after, by {getattr(loaded.activation_function, '__name__', '?')}")
raise SystemExit(not (again.W_skip is None and gone and kept == K and fire > 2 * K))
PY
