#!/usr/bin/env bash
# SAELens' Matryoshka appends d_sae to the list of widths that it was given: the next, smaller or larger, refuses that list or has a level too many.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sae-lens==6.54.12
"$python" -W ignore - 2>/dev/null <<'PY'
import sae_lens
from sae_lens import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig

print(f"sae-lens {sae_lens.__version__}\nexpected: dictionaries of several sizes, each with the inner levels [8, 16]")
seen = []
for sizes in ([64, 128], [64, 32]):
    widths = [8, 16]
    for size in sizes:
        try:
            sae = MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(d_in=16, d_sae=size, k=4, matryoshka_widths=widths))
            seen.append(list(sae.cfg.matryoshka_widths))
        except ValueError as error:
            seen.append(str(error))
        print(f"seen: d_sae={size}{'' if size == sizes[0] else f' after {sizes[0]}'}: {seen[-1]}")
raise SystemExit(seen != [[8, 16, 64], [8, 16, 64, 128], [8, 16, 64], "cfg.matryoshka_widths must be strictly increasing."])
PY
