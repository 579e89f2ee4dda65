#!/usr/bin/env bash
# gloo's all_reduce, reduce, broadcast and scatter of a column take as many numbers as it has from where it begins, so they change its neighbours.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0
"$python" -W ignore - 2>/dev/null <<'PY'
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS, ROWS, COLUMNS = 2, 3, 2


def collectives(column, rows):
    return {
        "all_reduce": lambda: dist.all_reduce(column),
        "reduce": lambda: dist.reduce(column, 0),
        "broadcast": lambda: dist.broadcast(column, 1),
        "scatter": lambda: dist.scatter(column, list(rows) if dist.get_rank() == 0 else None),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(column, rows.flatten()),
        "send, recv": lambda: dist.send(column, 1) if dist.get_rank() == 0 else dist.recv(column, 0),
    }


def work(rank):
    dist.init_process_group("gloo", init_method=f"file://{Path('store').absolute()}", rank=rank, world_size=RANKS)
    seen = {}
    for name in collectives(None, None):
        tables = []
        for whole in (False, True):  # the column by itself is contiguous
            table = torch.arange(float(ROWS * COLUMNS)).reshape(ROWS, COLUMNS) + 100 * rank
            column = table[:, 0].clone() if whole else table[:, 0]
            try:
                collectives(column, torch.arange(10.0, 10 + RANKS * ROWS).reshape(RANKS, ROWS))[name]()
            except (RuntimeError, ValueError) as error:
                tables.append(str(error))
                continue
            table[:, 0] = column
            tables.append(table.tolist())
        seen[name] = tables
    if rank == 0:
        print("seen on rank 0, the table is [[0, 1], [2, 3], [4, 5]], and that plus 100 on rank 1:")
        for name, (column, contiguous) in seen.items():
            print(f"seen: {name} of the column: {column}, of its contiguous copy: {contiguous}")
        wrong = {name for name, (column, contiguous) in seen.items() if isinstance(column, list) and column != contiguous}
        right = {name for name, (column, contiguous) in seen.items() if column == contiguous}
        refused = {name for name, (column, _) in seen.items() if isinstance(column, str)}
        expected = {"all_reduce", "reduce", "broadcast", "scatter"}, {"reduce_scatter_tensor"}, {"send, recv"}
        raise SystemExit((wrong, right, refused) != expected)


print(f"torch {torch.__version__}, {RANKS} processes with gloo\nexpected: the first column is reduced or received, or refused as by send; the second one stays")
mp.start_processes(work, nprocs=RANKS, start_method="fork")
PY
