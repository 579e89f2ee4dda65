#!/usr/bin/env bash
# netcal's HistogramBinning: a confidence on the border of two bins is counted in the upper one and looked up in the lower, so of confidences in tenths, as a model says them, most get another one's frequency, or a bin's middle.
set -euo pipefail
source "$(dirname "$0")/environment_netcal.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from netcal.binning import HistogramBinning
from netcal.metrics import ECE

EACH = 1_000


def shown(numbers):
    return "[" + ", ".join(f"{x:.3g}" for x in numbers) + "]"


print(f"netcal {version('netcal')}: {EACH} answers with each of some confidences, of which other shares are right; as many bins, so that confidences have one each. In eighths, confidences and borders are exact")
print("expected: fitted and applied to the same answers, each confidence becomes the share that is right, and the calibration error is 0")
seen = {}
for name, bins, above in (("in eighths", 8, 0), ("0.01 above eighths", 8, 0.01), ("in tenths", 10, 0)):
    share = 1 - np.arange(1, bins) / bins
    said = 1 - share + above
    right = np.concatenate([np.arange(EACH) < round(EACH * by) for by in share]).astype(int)
    binning = HistogramBinning(bins=bins)
    calibrated = binning.fit_transform(np.repeat(said, EACH), right)
    became = binning.transform(said)
    wrong = int((np.abs(became - share) > 1e-6).sum())
    # In so many bins that no two calibrated values share one.
    seen[name] = wrong, ECE(1_000).measure(calibrated, right)
    print(f"seen: {name}: {shown(said)} become {shown(became)}, where {shown(share)} are right: {wrong} of {len(said)} are others; calibration error {seen[name][1]:.3f}")
eighths, above, tenths = seen.values()
raise SystemExit(not (eighths[0] == 7 and eighths[1] > 0.1 and above[0] == 0 and above[1] < 1e-6 and tenths[0] > 4))
PY
