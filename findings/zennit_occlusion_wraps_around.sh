#!/usr/bin/env bash
# zennit's Occlusion where the size is no multiple of the window, as 28 pixels and the default of 8: the last window goes on at the other edge, which gets its score.
set -euo pipefail
source "$(dirname "$0")/environment_zennit.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from zennit.attribution import Occlusion

SIDE, WINDOW = 28, 8


class Last(torch.nn.Module):
    """The value of the last pixel alone."""

    def forward(self, images):
        return images[:, 0, -1:, -1]


class Middle(torch.nn.Module):
    """The value of a pixel in the middle alone."""

    def forward(self, images):
        return images[:, 0, SIDE // 2 : SIDE // 2 + 1, SIDE // 2]


print(f"zennit {version('zennit')}: Occlusion as it is by default, windows of {WINDOW}, on an image of {SIDE} x {SIDE} pixels that are all 1")
print("expected: a window's score, the output with only it there, goes to a block of pixels that lie together")
images = torch.ones(1, 1, SIDE, SIDE)
seen = {}
for name, model in {"a middle pixel": Middle(), "the last pixel": Last()}.items():
    with Occlusion(model) as attributor:
        _, attribution = attributor(images, lambda output: output)
    rows, columns = attribution[0, 0].sum(1).nonzero()[:, 0].tolist(), attribution[0, 0].sum(0).nonzero()[:, 0].tolist()
    seen[name] = rows, columns
    print(f"seen: the output is {name}: rows {rows}, columns {columns}")
together = list(range(SIDE // 2 // WINDOW * WINDOW, SIDE // 2 // WINDOW * WINDOW + WINDOW))
wrapped = [*range(WINDOW - SIDE % WINDOW), *range(SIDE - SIDE % WINDOW, SIDE)]
raise SystemExit(not (seen["a middle pixel"] == (together, together) and seen["the last pixel"] == (wrapped, wrapped)))
PY
