#!/usr/bin/env bash
# optimum-quanto's quantize: layers are made anew, so hooks that were on them are gone, and a layer held from before is no part of the model.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 optimum-quanto==0.2.7
"$python" -W ignore - <<'PY'
from collections import Counter
from importlib.metadata import version

import torch
from optimum.quanto import freeze, qint8, quantize
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 16)), nn.ReLU())
x, called = torch.randn(4, 16), Counter()
hooked = {"0, a Linear": model[0], "1, a LayerNorm": model[1], "2, a block": model[2], "2.0, its Linear": model[2][0], "3, a ReLU": model[3]}
for name, module in hooked.items():
    module.register_forward_hook(lambda module, args, out, name=name: called.update([name]))
steered = model[2][0].register_forward_hook(lambda module, args, out: out + 100)
print(f"optimum-quanto {version('optimum-quanto')}\nexpected: hooks stay, as they do where a layer's weight is replaced in place")
before, first = model(x), Counter(called)
quantize(model, weights=qint8)
freeze(model)
called.clear()
after = model(x)
for name in hooked:
    print(f"seen: hook on {name}: called {first[name]} time before, {called[name]} after")
print(f"seen: outputs, steered by a hook that adds 100: {before.mean():.1f} before, {after.mean():.1f} after; model[0] is the same module {model[0] is hooked['0, a Linear']}")
lost = {name for name in hooked if first[name] and not called[name]}
raise SystemExit(not (lost == {"0, a Linear", "2.0, its Linear"} and before.mean() > 90 > after.mean()))
PY
