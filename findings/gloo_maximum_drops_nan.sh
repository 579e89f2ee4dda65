#!/usr/bin/env bash
# gloo's MAX and MIN of all_reduce: a rank's NaN stays in that rank's share of the elements and is dropped from all others; of one number, only rank 0's stays.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0
"$python" -W ignore - 2>/dev/null <<'PY'
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS, LATENTS = 4, 1000


def work(rank):
    dist.init_process_group("gloo", init_method=f"file://{Path('store').absolute()}", rank=rank, world_size=RANKS)
    seen = {}
    for op in (dist.ReduceOp.MAX, dist.ReduceOp.MIN, dist.ReduceOp.SUM):
        for numbers in (1, LATENTS):
            shares = []
            for which in range(RANKS):
                x = torch.full((numbers,), torch.nan if rank == which else 1.0)
                dist.all_reduce(x, op)
                shares.append(round(x.isnan().double().mean().item(), 3))
            seen[str(op).split(".")[-1], numbers] = shares
    everywhere = [None] * RANKS
    dist.all_gather_object(everywhere, seen)
    if rank == 0:
        for (op, numbers), shares in seen.items():
            print(f"seen: {op} of {numbers:,} that are all NaN on rank 0, or 1, 2, 3: NaN are " + ", ".join(f"{share:.0%}" for share in shares) + " of the result")
        local = {op: [getattr(torch.stack(pair), op)(0).isnan().item() for pair in ((nan, one), (one, nan))] for op in ("amax", "amin")}
        print(f"seen: in one process, NaN before and after 1: amax and amin are NaN {local['amax']}, {local['amin']}")
        first, equal, whole = [1.0, 0.0, 0.0, 0.0], [1 / RANKS] * RANKS, [1.0] * RANKS
        expected = {(op, n): whole if op == "SUM" else first if n == 1 else equal for op, n in seen}
        raise SystemExit(not (seen == expected and everywhere == [seen] * RANKS and local == {"amax": [True] * 2, "amin": [True] * 2}))


nan, one = torch.tensor(torch.nan), torch.tensor(1.0)
print(f"torch {torch.__version__}, {RANKS} processes with gloo\nexpected: NaN is the result wherever it was, as with torch.amax, or it never is")
mp.start_processes(work, nprocs=RANKS, start_method="fork")
PY
