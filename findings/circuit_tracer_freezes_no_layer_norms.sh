#!/usr/bin/env bash
# circuit-tracer's feature_intervention: freeze_attention, by its docstring attention patterns and LayerNorms, freezes patterns alone.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 circuit-tracer==0.5.0
"$python" -W ignore - 2>/dev/null <<'PY'
import os
import sys
from importlib.metadata import version

import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from transformer_lens import HookedTransformerConfig

LAYERS, WIDTH, LATENTS = 3, 16, 32
torch.manual_seed(0)
transcoders = {}
for layer in range(LAYERS):
    transcoders[layer] = SingleLayerTranscoder(WIDTH, LATENTS, torch.relu, layer, device=torch.device("cpu"), dtype=torch.float32)
    for parameter in transcoders[layer].parameters():
        parameter.data.normal_(std=0.3)
config = HookedTransformerConfig(
    n_layers=LAYERS, d_model=WIDTH, n_ctx=16, n_heads=2, d_head=8, d_mlp=32, d_vocab=40, act_fn="gelu",
    normalization_type="LN", model_name="tiny", seed=0, device="cpu",
)  # fmt: skip
model = TransformerLensReplacementModel.from_config(config, TranscoderSet(transcoders, "hook_resid_mid", "hook_mlp_out", scan="none"))
tokens = torch.tensor([0, 5, 6, 7, 8])
NORMS = [f"blocks.{LAYERS - 1}.ln1.hook_scale", f"blocks.{LAYERS - 1}.ln2.hook_scale", "ln_final.hook_scale"]
PATTERN = f"blocks.{LAYERS - 1}.attn.hook_pattern"


def recorded(interventions, **options):
    """What the hook points give in the last run. Recorders are added as a run starts, behind the hooks of the intervention."""
    came, handles = {}, []

    def arm(*_):
        while handles:
            handles.pop().remove()
        for name, module in model.named_modules():
            if name in (*NORMS, PATTERN):
                handles.append(module.register_forward_hook(lambda _, __, out, name=name: came.__setitem__(name, out.clone())))

    armed = model.register_forward_pre_hook(arm)
    model.feature_intervention(tokens, interventions, **options)
    for handle in (armed, *handles):
        handle.remove()
    return came


plain = recorded([])
print(f"circuit-tracer {version('circuit-tracer')}: one latent of layer 0 is set to 50; what changes in layer {LAYERS - 1} and behind it")
seen = {}
for name, options in [
    ("freeze_attention=True", {"freeze_attention": True}),
    (f"constrained_layers=range({LAYERS}), all", {"constrained_layers": range(LAYERS)}),
]:
    came = recorded([(0, 3, 3, 50.0)], **options)
    patterns = torch.equal(came[PATTERN], plain[PATTERN])
    norms = max(float(((came[norm] - plain[norm]) / plain[norm]).abs().max()) for norm in NORMS)
    seen[name] = patterns, norms
    print(f"{name}\n  expected: patterns and LayerNorms' scales frozen")
    print(f"  seen: patterns {'frozen' if patterns else 'changed'}; scales change by up to {norms:.0%}")
attention, whole = seen.values()
sys.stdout.flush()
# The model's own __del__ complains at exit.
os._exit(not (attention[0] and attention[1] > 0.1 and whole == (True, 0.0)))
PY
