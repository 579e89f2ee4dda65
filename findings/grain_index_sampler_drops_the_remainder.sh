#!/usr/bin/env bash
# grain's IndexSampler of several shards with drop_remainder=False, the default: each shard gets as many rows as with True, the last rows of an epoch never come, and epochs overlap.
set -euo pipefail
source "$(dirname "$0")/environment.sh" grain==0.2.18 numpy==2.4.6
"$python" -W ignore - 2>/dev/null <<'PY'
from collections import Counter

import grain
from grain.samplers import IndexSampler
from grain.sharding import ShardOptions

ROWS, SHARDS = 1007, 8
print(f"grain {grain.__version__}, {ROWS} rows in {SHARDS} shards, one after another")
print(f"expected: as ShardOptions says, drop_remainder=False gives the {ROWS % SHARDS} rows that are left over to the first shards, so each row comes once in an epoch")


def rows_of(shard, drop, epochs):
    options = ShardOptions(shard_index=shard, shard_count=SHARDS, drop_remainder=drop)
    sampler = IndexSampler(num_records=ROWS, shard_options=options, shuffle=True, seed=0, num_epochs=epochs)
    return [int(row) for row in grain.DataLoader(data_source=list(range(ROWS)), sampler=sampler, worker_count=0)]


seen = {}
for epochs in (1, 3):
    for drop in (True, False):
        shards = [rows_of(shard, drop, epochs) for shard in range(SHARDS)]
        counts = Counter(row for shard in shards for row in shard)
        never, fewer, more = ROWS - len(counts), sum(count < epochs for count in counts.values()), sum(count > epochs for count in counts.values())
        seen[epochs, drop] = [len(shard) for shard in shards], never, fewer, more
        print(f"seen: {epochs} epochs, drop_remainder={drop}: {sorted(set(seen[epochs, drop][0]))} rows of a shard; {never} rows never come, {fewer} fewer than {epochs} times, {more} more often")
least = ROWS // SHARDS
dropped = seen[1, True] == seen[1, False] == ([least] * SHARDS, ROWS % SHARDS, 0, 0)
raise SystemExit(not (dropped and seen[3, True][1:] == (ROWS % SHARDS, 0, 0) and seen[3, False][1] == 0 and min(seen[3, False][2:]) > 0))
PY
