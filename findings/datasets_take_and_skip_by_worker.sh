#!/usr/bin/env bash
# datasets' streams in a DataLoader with workers: take and skip are of each worker's shards, so rows held out are trained on, a rank's take comes doubled, and with_indices numbers repeat.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 datasets==5.2.0 numpy==2.4.6
"$python" -W ignore - 2>/dev/null <<'PY'
import datasets
from datasets import Dataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

ROWS, SHARDS, HELD_OUT = 4000, 8, 800


def stream():
    return Dataset.from_dict({"row": list(range(ROWS))}).to_iterable_dataset(num_shards=SHARDS)


def rows(dataset, workers, column="row"):
    return [int(row) for batch in DataLoader(dataset, batch_size=50, num_workers=workers) for row in batch[column]]


print(f"datasets {datasets.__version__}, a stream of {ROWS} rows in {SHARDS} shards; take({HELD_OUT}) is for validation, skip({HELD_OUT}) for training")
print("expected: which rows these are does not depend on the number of workers, and no row is in both")
held_out = set(rows(stream().take(HELD_OUT), 0))
seen = {}
for workers in (0, 1, 2, 4):
    trained = rows(stream().skip(HELD_OUT), workers)
    rank = rows(split_dataset_by_node(stream(), 0, 2).take(HELD_OUT), workers)
    numbers = rows(stream().map(lambda row, number: {"number": number}, with_indices=True), workers, "number")
    seen[workers] = len(trained), len(held_out & set(trained)), len(rank), len(set(numbers))
    print(f"seen: {workers} workers: training reads {seen[workers][0]} rows, {seen[workers][1]} of the {HELD_OUT} that a validation without workers reads")
    print(f"seen: {workers} workers: take({HELD_OUT}) of one of two ranks gives {seen[workers][2]} rows; with_indices gives {seen[workers][3]} numbers to {len(numbers)} rows")
right = (ROWS - HELD_OUT, 0, HELD_OUT, ROWS)
wrong = seen[2] == (3200, 100, 1600, 2000) and seen[4] == (3200, 400, 2000, 1000)
raise SystemExit(not (seen[0] == seen[1] == right and wrong))
PY
