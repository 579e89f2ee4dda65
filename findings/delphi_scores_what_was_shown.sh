#!/usr/bin/env bash
# delphi's sampler: the examples that test an explanation are drawn from all, with the seed of those that it is written from.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.23.0 datasets==5.2.0 sentence-transformers==6.2.0 faiss-cpu==1.15.1 \
    asyncer==0.0.18 blobfile==3.3.0 jaxtyping==0.3.11 orjson==3.13.0 simple-parsing==0.1.9
# It asks for vLLM too, gigabytes that are used for explaining alone.
if [ -z "${FINDINGS_PYTHON:-}" ]; then "$python" -m pip install --quiet --no-deps eai-delphi==0.1.3; fi
"$python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from delphi.config import SamplerConfig
from delphi.latents import ActivatingExample, Latent, LatentRecord, sampler


class Tokens:
    def batch_decode(self, tokens):
        return [str(int(token)) for token in tokens]


print(f"eai-delphi {version('eai-delphi')}\nexpected: no example that an explanation is tested on is one that it was written from, if there are enough")
shares = {}
for kind in ("quantiles", "mix", "top", "random"):
    for count in (200, 1000):
        record = LatentRecord(Latent("layer", 0))
        record.examples = [ActivatingExample(torch.tensor([number]), torch.tensor([1.0 - number / count])) for number in range(count)]
        config = SamplerConfig(train_type=kind)
        record = sampler(record, config, Tokens())
        train, test = ({int(example.tokens) for example in examples} for examples in (record.train, record.test))
        shares[kind, count] = len(train & test) / len(test)
        default = ", the default" if kind == SamplerConfig().train_type else ""
        print(f"seen: {kind}{default}, {count} examples: {len(train)} are shown, {len(test)} tested, {len(train & test)} of these were shown")
raise SystemExit(not (shares["quantiles", 200] > 0.3 and shares["quantiles", 1000] > 0.15))
PY
