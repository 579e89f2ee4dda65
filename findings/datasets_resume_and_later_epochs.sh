#!/usr/bin/env bash
# datasets: a stream that was resumed begins every later pass where it was resumed, and a state of a later epoch is not used at all.
set -euo pipefail
source "$(dirname "$0")/environment.sh" datasets==5.2.0
"$python" - 2>/dev/null <<'PY'
import datasets
from datasets import Dataset

ROWS, READ = 40, 13


def stream():
    return Dataset.from_dict({"row": list(range(ROWS))}).to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=1)


def rows(of):
    return [each["row"] for each in of]


def interrupted(epoch):
    whole = stream()
    whole.set_epoch(epoch)
    iterator = iter(whole)
    before = [next(iterator)["row"] for _ in range(READ)]
    state = whole.state_dict()
    resumed = stream()
    resumed.load_state_dict(state)
    return before, state, resumed


print(f"datasets {datasets.__version__}, {ROWS} rows, a state after {READ} of them")
print(f"expected: of every epoch {ROWS - READ} rows are left, and the pass after that has all {ROWS}")
left = {}
for epoch in (0, 1):
    before, state, resumed = interrupted(epoch)
    after, later = rows(resumed), rows(resumed)
    left[epoch] = len(after), len(later), len(set(before) & set(after))
    print(f"seen: epoch {epoch} (the state says {state['epoch']}): {len(after)} rows left, {left[epoch][2]} of them read before; the next pass has {len(later)}")
before, state, resumed = interrupted(1)
resumed.set_epoch(1)
named = len(rows(resumed))
whole = stream()
rows(whole)
ended = stream()
ended.load_state_dict(whole.state_dict())
empty = len(rows(ended)), len(rows(ended))
print(f"seen: epoch 1, with set_epoch(1) as well: {named} rows left")
print(f"seen: a state after the last row: {empty[0]} rows left, and the next pass has {empty[1]}")
rest = ROWS - READ
raise SystemExit(not (left == {0: (rest, rest, 0), 1: (ROWS, ROWS, READ)} and named == rest and empty == (0, 0)))
PY
