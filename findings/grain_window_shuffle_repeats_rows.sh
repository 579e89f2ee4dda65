#!/usr/bin/env bash
# grain's WindowShuffleMapDataset where the rows are no multiple of the window: in the last window early rows come a second time, and rows of it never, though it promises one-to-one.
set -euo pipefail
source "$(dirname "$0")/environment.sh" grain==0.2.18 numpy==2.4.6
"$python" -W ignore - 2>/dev/null <<'PY'
from collections import Counter

import grain
from grain.experimental import WindowShuffleIterDataset, WindowShuffleMapDataset

print(f"grain {grain.__version__}\nexpected: each row once in an epoch, as from shuffle and from WindowShuffleIterDataset")
seen = {}
for rows, window in ((1024, 256), (1030, 256), (1250, 256), (100, 256)):
    source = grain.MapDataset.source(list(range(rows)))
    ways = {
        "shuffle": source.shuffle(seed=0),
        "WindowShuffleIterDataset": WindowShuffleIterDataset(source.to_iter_dataset(), window_size=window, seed=0),
        "WindowShuffleMapDataset": WindowShuffleMapDataset(source, window_size=window, seed=0),
    }
    for name, dataset in ways.items():
        counts = Counter(int(row) for row in dataset)
        twice, never = sum(count > 1 for count in counts.values()), rows - len(counts)
        seen[rows, name] = sum(counts.values()) == rows, twice, never
        print(f"seen: {rows} rows, windows of {window}, {name}: {sum(counts.values())} come, {twice} rows more than once, {never} never")
wrong = {key: found for key, found in seen.items() if key[1] == "WindowShuffleMapDataset" and key[0] != 1024}
right = all(found == (True, 0, 0) for key, found in seen.items() if key not in wrong)
raise SystemExit(not (right and all(count and twice > 2 and never > 2 for count, twice, never in wrong.values())))
PY
