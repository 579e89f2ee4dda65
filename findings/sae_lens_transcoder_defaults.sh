#!/usr/bin/env bash
# SAELens' TranscoderConfig and SkipTranscoderConfig refuse their own defaults.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 sae-lens==6.54.12
"$python" - <<'PY'
import sae_lens
from sae_lens import SkipTranscoder, SkipTranscoderConfig, Transcoder, TranscoderConfig

print(f"sae-lens {sae_lens.__version__}\nexpected: sizes alone make a configuration")
refused = []
for kind, config in ((Transcoder, TranscoderConfig), (SkipTranscoder, SkipTranscoderConfig)):
    try:
        config(d_in=16, d_sae=64, d_out=16)
    except ValueError as error:
        refused.append(kind.__name__)
        print(f"seen: {kind.__name__}: {error}")
    kind(config(d_in=16, d_sae=64, d_out=16, apply_b_dec_to_input=False))
raise SystemExit(refused != ["Transcoder", "SkipTranscoder"])
PY
