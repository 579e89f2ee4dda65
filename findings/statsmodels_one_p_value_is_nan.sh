#!/usr/bin/env bash
# statsmodels' multipletests with one p-value that is NaN, as a dead latent's is: by fdr_bh all corrected p-values are NaN, by fdr_gbs and hommel nothing is rejected.
set -euo pipefail
source "$(dirname "$0")/environment.sh" statsmodels==0.15.0
"$python" -W ignore - <<'PY'
import numpy
import statsmodels
from statsmodels.stats.multitest import multipletests

p_values = numpy.array([1e-9, 1e-7, 1e-6, 0.3, 0.6, numpy.nan])
print(f"statsmodels {statsmodels.__version__}, p-values {p_values}\nexpected: NaN for the NaN, and the five others corrected; three are rejected")
seen = {}
for method in "bonferroni", "holm", "fdr_bh", "fdr_by", "hommel", "fdr_gbs":
    rejected, corrected = multipletests(p_values, method=method)[:2]
    without = multipletests(p_values[:-1], method=method)[0].sum()
    seen[method] = int(numpy.isnan(corrected).sum()), int(rejected.sum()), int(without)
    print("seen: {}: {} corrected p-values are NaN, {} rejected; {} rejected without the NaN".format(method, *seen[method]))
right = seen["bonferroni"] == seen["holm"] == (1, 3, 3)
raise SystemExit(not (right and seen["fdr_bh"] == seen["fdr_by"] == (6, 3, 3) and seen["hommel"] == seen["fdr_gbs"] == (6, 0, 3)))
PY
