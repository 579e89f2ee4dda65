#!/usr/bin/env bash
# litdata's CombinedStreamingDataset with batching_method="per_stream": no batch is of the set that the last one was of, so of two sets with weights 0.9 and 0.1 each gives half of the batches.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6 litdata==0.2.76
unset TQDM_DISABLE # litdata fails without its bar
cat > samples.py <<'PY'
def sample(index):
    return index
PY
cat > run.py <<'PY'
import contextlib
import os
from itertools import islice

import litdata
from samples import sample

SIZE, BATCH, BATCHES = 4000, 8, 300
if __name__ == "__main__":
    print(f"litdata {litdata.__version__}\nexpected: the shares of the weights, batch by batch as sample by sample; by its documentation each batch's set is drawn at random")
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        for number in range(3):
            litdata.optimize(sample, list(range(number * SIZE, (number + 1) * SIZE)), output_dir=f"set{number}", chunk_bytes="64KB", num_workers=1)
    seen = {}
    for method in ("stratified", "per_stream"):
        for weights in ((0.9, 0.1), (0.5, 0.5), (0.8, 0.1, 0.1)):
            sets = [litdata.StreamingDataset(f"set{number}", shuffle=False) for number in range(len(weights))]
            both = litdata.CombinedStreamingDataset(sets, weights=weights, iterate_over_all=False, batching_method=method, seed=0)
            batches = [batch // SIZE for batch in islice(litdata.StreamingDataLoader(both, batch_size=BATCH), BATCHES)]
            shares = [sum((batch == number).sum().item() for batch in batches) / (BATCH * BATCHES) for number in range(len(weights))]
            again = sum(len({*one.tolist(), *other.tolist()}) == 1 for one, other in zip(batches, batches[1:]))
            seen[method, weights] = shares[0], again
            print(f"seen: {method}, weights {weights}: shares {[round(share, 2) for share in shares]}; {again} of {BATCHES - 1} batches are wholly of the same set as the one before")
    right = all(abs(share - weights[0]) < 0.05 for (method, weights), (share, _) in seen.items() if method == "stratified")
    per_stream = {weights: found for (method, weights), found in seen.items() if method == "per_stream"}
    raise SystemExit(not (right and all(again == 0 for _, again in per_stream.values()) and per_stream[0.9, 0.1][0] == 0.5 and per_stream[0.8, 0.1, 0.1][0] <= 0.5))
PY
"$python" -W ignore run.py 2>/dev/null
