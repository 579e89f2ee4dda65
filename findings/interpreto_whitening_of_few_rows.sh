#!/usr/bin/env bash
# interpreto's Whitening of no more rows than dimensions: the last direction has no variance but rounding, is scaled by a million, and drowns all others in rows that come later.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 interpreto==0.5.2
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from interpreto.concepts.probes import MeansDiffProbe
from interpreto.concepts.probes.bias_calibrators import midpoint_bias
from interpreto.concepts.probes.normalizations import Whitening

WIDTH, ROWS, NEW, APART = 64, 40, 2_000, 8.0
torch.manual_seed(0)


def drawn(rows):
    """Activations of which half have the concept, and which these are."""
    has = (torch.arange(rows) % 2).float()[:, None]
    return torch.randn(rows, WIDTH) + APART * has * torch.eye(WIDTH)[0], has


print(f"interpreto {version('interpreto')}: {ROWS} activations {WIDTH} wide, {NEW} later ones; the concept moves them by {APART:g} standard deviations")
print("expected: whitened rows have a unit variance, and later ones about that: whitening uses the directions in which rows differ")
activations, labels = drawn(ROWS)
later, right = drawn(NEW)
largest, accuracy = {}, {}
for name, rank in {"as it is by default": None, f"with rank={ROWS - 1}": ROWS - 1}.items():
    whitening = Whitening(rank=rank)
    whitening.fit(activations)
    probe = MeansDiffProbe(bias_calibrator=midpoint_bias, normalization=Whitening(rank=rank))
    probe.fit(activations, labels)
    largest[name] = float(whitening(later).std(0).max())
    accuracy[name] = float(((probe.encode(later) > 0) == (right > 0)).float().mean())
    within = float(whitening(activations).std(0).max())
    print(f"seen: {name}: standard deviations up to {within:.2f}, of later rows up to {largest[name]:.3g}; a probe on it has an accuracy of {accuracy[name]:.3f}")
(by_default, fewer), (drowned, clear) = largest.values(), accuracy.values()
raise SystemExit(not (by_default > 1e4 and fewer < 100 and drowned < 0.7 and clear > 0.95))
PY
