#!/usr/bin/env bash
# torchdata: stopped in the second epoch, a loader with a RandomSampler of torch's, or nodes' SamplerWrapper, goes on in the first one's order: rows come twice, others never.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 torchdata==0.11.0
"$python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from torch.utils.data import BatchSampler, RandomSampler, SubsetRandomSampler
from torchdata import nodes
from torchdata.stateful_dataloader import StatefulDataLoader

ROWS, BATCH, READ = range(240), 4, 30


def ordered():
    return torch.Generator().manual_seed(0)


def sampler():
    return RandomSampler(ROWS, generator=ordered())


loaders = {
    "shuffle=True": lambda: StatefulDataLoader(ROWS, BATCH, shuffle=True, generator=ordered()),
    "sampler=RandomSampler": lambda: StatefulDataLoader(ROWS, BATCH, sampler=sampler()),
    "sampler=SubsetRandomSampler": lambda: StatefulDataLoader(ROWS, BATCH, sampler=SubsetRandomSampler(ROWS, generator=ordered())),
    "batch_sampler=BatchSampler": lambda: StatefulDataLoader(ROWS, batch_sampler=BatchSampler(sampler(), BATCH, False)),
    "nodes.SamplerWrapper": lambda: nodes.Loader(nodes.Batcher(nodes.SamplerWrapper(sampler()), BATCH)),
}


def rows(batches):
    return [int(row) for batch in batches for row in batch]


print(f"torchdata {version('torchdata')}, torch {torch.__version__}, {len(ROWS)} rows, a state after {READ} of an epoch's {len(ROWS) // BATCH} batches")
print("expected: loaded into a new loader, it goes on with the rows that are left of that epoch, each once")
seen = {}
for name, make in loaders.items():
    for epoch in (1, 2):
        torch.manual_seed(0)
        loader = make()
        for _ in range(epoch - 1):
            rows(loader)
        iterator = iter(loader)
        before = rows(next(iterator) for _ in range(READ))
        state = loader.state_dict()
        left = rows(iterator)
        torch.manual_seed(0)
        resumed = make()
        resumed.load_state_dict(state)
        after = rows(resumed)
        seen[name, epoch] = after == left, len(set(before) & set(after)), len(set(ROWS) - set(before) - set(after))
        same, twice, never = seen[name, epoch]
        print(f"seen: {name}, epoch {epoch}: {'as without a stop' if same else f'{twice} rows come twice in it, {never} never'}")
first = all(seen[name, 1] == (True, 0, 0) for name in loaders)
second = [name for name in loaders if seen[name, 2] != (True, 0, 0)]
lost = all(min(seen[name, 2][1:]) > 30 for name in second)
raise SystemExit(not (first and second == list(loaders)[1:] and lost))
PY
