#!/usr/bin/env bash
# zennit's SequentialMergeBatchNorm, which its notes have for modules in the order of the forward: in a residual network with norms first it merges a norm into what is before the sum, and the output is another.
set -euo pipefail
source "$(dirname "$0")/environment_zennit.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from torch import nn
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlus

WIDTH, BLOCKS = 8, 3


class Block(nn.Module):
    """Norm, ReLU and convolution twice, added to what comes in; `first` tells whether norms are before their convolutions."""

    def __init__(self, first):
        super().__init__()
        norms, rest = [nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)], [nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2)]
        order = [norms[0], nn.ReLU(), rest[0], norms[1], nn.ReLU(), rest[1]] if first else [rest[0], norms[0], nn.ReLU(), rest[1], norms[1]]
        self.inner = nn.Sequential(*order)

    def forward(self, x):
        return x + self.inner(x)


def trained(first):
    """Blocks whose norms have statistics and weights of their own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), *(Block(first) for _ in range(BLOCKS)), nn.Flatten(), nn.Linear(WIDTH * 64, 4))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.3, 3)
            module.running_mean.normal_()
    return model.eval()


print(f"zennit {version('zennit')}: EpsilonPlus with SequentialMergeBatchNorm, {BLOCKS} residual blocks, all modules in the order of the forward")
print("expected: a canonizer changes how the model is written, and not what it computes")
off = {}
images = torch.randn(4, 3, 8, 8)
for name, first in {"norms after their convolutions": False, "norms first": True}.items():
    model = trained(first)
    with torch.no_grad():
        right = model(images)
    with Gradient(model, EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])) as attributor:
        output, _ = attributor(images, torch.eye(4))
    off[name] = float((output.detach() - right).abs().max() / right.abs().max())
    print(f"seen: {name}: outputs differ by {off[name]:.2g} of the largest; {int((output.argmax(1) != right.argmax(1)).sum())} of 4 predictions are others")
after, before = off.values()
raise SystemExit(not (after < 1e-3 and before > 0.1))
PY
