#!/usr/bin/env bash
# overcomplete's SkICA: its dictionary is the unmixing matrix, and decode leaves out the mean; SkKMeans' decode weighs the farthest centre most.
set -euo pipefail
source "$(dirname "$0")/environment_overcomplete.sh"
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from overcomplete.optimization.sklearn_wrappers import SkICA, SkKMeans, SkPCA

torch.manual_seed(0)
WIDTH = 6
x = torch.distributions.Laplace(0.0, 1.0).sample((2000, WIDTH)) @ torch.randn(WIDTH, WIDTH) + 5


def off(recon, of=x):
    return ((recon - of).norm() / of.norm()).item()


print(f"overcomplete {version('overcomplete')}\nexpected: decode(encode(x)) is x for as many components as dimensions, and so is codes @ get_dictionary() plus the mean")
seen = {}
for kind in (SkPCA, SkICA):
    model = kind(WIDTH, random_state=0)
    model.fit(x)
    codes = model.encode(x)
    dictionary = model.get_dictionary()
    mixing = torch.tensor(model.model.mixing_.T).float() if kind is SkICA else dictionary
    seen[kind.__name__] = [off(recon) < 1e-3 for recon in (model.decode(codes), codes @ dictionary + x.mean(0), codes @ mixing + x.mean(0))]
    print(f"seen: {kind.__name__}: decode is off by {off(model.decode(codes)):.1%}, codes @ get_dictionary() + mean by "
          f"{off(codes @ dictionary + x.mean(0)):.1%}" + (f", codes @ mixing + mean by {off(codes @ mixing + x.mean(0)):.1%}" if kind is SkICA else ""))
blobs = torch.cat([torch.randn(100, 2) * 0.1 + centre for centre in torch.tensor([[10.0, 0.0], [0.0, 10.0]])])
means = SkKMeans(2, random_state=0, n_init=1)
means.fit(blobs)
recon = means.decode(means.encode(blobs))
nearest = torch.tensor(means.model.cluster_centers_[means.model.labels_])
print(f"seen: SkKMeans, two tight clusters: decode(encode(x)) is off by {off(recon, blobs):.0%}, the nearest centre by {off(nearest, blobs):.0%}; "
      f"x[0] is {[round(v) for v in blobs[0].tolist()]}, decoded {[round(v) for v in recon[0].tolist()]}")
raise SystemExit(not (seen == {"SkPCA": [True] * 3, "SkICA": [False, False, True]} and off(recon, blobs) > 1 > 0.1 > off(nearest, blobs)))
PY
