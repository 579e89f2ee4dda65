#!/usr/bin/env bash
# pyvene's interventions on an SAE's latents: with nothing chosen, JumpReLU's exchanges the first embed_dim latents, Autoencoder's one latent.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 pyvene==0.1.8
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from pyvene import AutoencoderIntervention, JumpReLUAutoencoderIntervention, VanillaIntervention

WIDTH, LATENTS, TOKENS = 16, 64, 32
torch.manual_seed(0)
base, source = torch.randn(1, TOKENS, WIDTH), torch.randn(1, TOKENS, WIDTH)
jump = JumpReLUAutoencoderIntervention(embed_dim=WIDTH, low_rank_dimension=LATENTS)
plain = AutoencoderIntervention(embed_dim=WIDTH, latent_dim=LATENTS)
print(f"pyvene {version('pyvene')}, autoencoders of {LATENTS} latents on activations {WIDTH} wide; no subspaces are given")
print("expected: all is exchanged, as VanillaIntervention does it, so that what comes out is the source's reconstruction")
with torch.no_grad():
    jump.W_enc.normal_(), jump.W_dec.normal_()
    whole = torch.equal(VanillaIntervention(embed_dim=WIDTH)(base.clone(), source.clone()), source)
    exchanged = {}
    for intervention, encode, decode in (
        (jump, jump.encode, jump.decode),
        (plain, plain.autoencoder.encode, plain.autoencoder.decode),
    ):
        theirs, ours = encode(base), encode(source)
        out = intervention(base.clone(), source.clone())
        # Which latents' exchange gives what came out: a set of 0 and 1 by least squares over all tokens.
        change = ours - theirs
        step = torch.stack([decode(theirs + change * (torch.arange(LATENTS) == i)) - decode(theirs) for i in range(LATENTS)])
        weights = torch.linalg.lstsq(step.flatten(1).T.double(), (out - decode(theirs)).flatten()[:, None].double()).solution[:, 0]
        came = [i for i in range(LATENTS) if weights[i] > 0.5]
        assert (weights - weights.round()).abs().max() < 1e-3
        name = type(intervention).__name__
        exchanged[name] = came
        print(f"seen: {name}: {len(came)} of {LATENTS} latents are the source's, those with the numbers {came[0]} to {came[-1]}")
jump_relu, autoencoder = exchanged["JumpReLUAutoencoderIntervention"], exchanged["AutoencoderIntervention"]
raise SystemExit(not (whole and jump_relu == list(range(WIDTH)) and autoencoder == [WIDTH]))
PY
