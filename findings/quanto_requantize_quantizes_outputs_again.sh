#!/usr/bin/env bash
# optimum-quanto's calibration leaves off the quantization of outputs that nothing needs; requantize, which loads what was saved, puts it on again, so the loaded model computes something else, and clips what it did not.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 optimum-quanto==0.2.7
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from optimum.quanto import Calibration, freeze, qint8, quantization_map, quantize, requantize
from torch import nn

torch.manual_seed(0)
calibration, new = torch.randn(256, 32), 3 * torch.randn(256, 32)
print(f"optimum-quanto {version('optimum-quanto')}\nexpected: a quantized model's state dict, loaded with its quantization map as the README has it, computes what the model computed")


def numbers(model, inputs):
    with torch.no_grad():
        out = model(inputs)
    return out.dequantize() if hasattr(out, "dequantize") else out


def off(one, other):
    return ((one - other).norm() / other.norm()).item()


seen = {}
for name, activations, streamline in (("weights alone", None, True), ("activations, streamline=False", qint8, False), ("activations", qint8, True)):
    model, loaded = (nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2))
    exact = numbers(model, new)
    quantize(model, weights=qint8, activations=activations)
    with Calibration(streamline=streamline):
        model(calibration)
    freeze(model)
    kept = numbers(model, new)
    requantize(loaded, model.state_dict(), quantization_map(model))
    again = numbers(loaded, new)
    seen[name] = off(again, kept), off(kept, exact), off(again, exact)
    hooks = [sum(len(layer._forward_hooks) for layer in made) for made in (model, loaded)]
    print("seen: {}: loaded it is off by {:.1%}; error of the model {:.1%}, of the loaded one {:.1%}".format(name, *seen[name]) + f"; outputs quantized in {hooks[0]} layers, and in {hooks[1]}")
raise SystemExit(not (seen["weights alone"][0] == seen["activations, streamline=False"][0] == 0 and seen["activations"][0] > 0.01))
PY
