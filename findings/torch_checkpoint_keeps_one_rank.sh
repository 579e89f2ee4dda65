#!/usr/bin/env bash
# torch.distributed.checkpoint: of values that ranks save under one name it keeps one rank's, not the same rank's for all names; each rank then gets the mixture.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.6
"$python" -W ignore - 2>/dev/null <<'PY'
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp

RANKS = 2
NAMES = ("rows_read", "shard", "seed", "tokens_since_fired", "rng_state", "ema")


def state_of(rank):
    """What a process has of its own, each value tells its rank."""
    values = (10 + rank, f"file {rank}", {"of": rank}, torch.full((5,), rank), torch.full((9,), rank, dtype=torch.uint8), torch.full((2, 3), float(rank)))
    return dict(zip(NAMES, values, strict=True))


def rank_of(value):
    if isinstance(value, torch.Tensor):
        return int(value.flatten()[0])
    return int(value["of"] if isinstance(value, dict) else str(value)[-1])


def work(rank, told):
    dist.init_process_group("gloo", init_method=f"file://{Path('store').absolute()}", rank=rank, world_size=RANKS)
    dcp.save(state_of(rank), checkpoint_id="checkpoint")
    loaded = {name: torch.zeros_like(value) - 1 if isinstance(value, torch.Tensor) else {"of": 9} if isinstance(value, dict) else None for name, value in state_of(rank).items()}
    dcp.load(loaded, checkpoint_id="checkpoint")
    told.put((rank, {name: rank_of(value) for name, value in loaded.items()}))
    dist.barrier()
    dist.destroy_process_group()


print(f"torch {torch.__version__}, {RANKS} processes, each saves {', '.join(NAMES)} of its own\nexpected: each loads what it saved, or save says that the processes do not agree")
told = mp.get_context("fork").SimpleQueue()
mp.start_processes(work, (told,), nprocs=RANKS, start_method="fork")
seen = dict(told.get() for _ in range(RANKS))
for rank in range(RANKS):
    print(f"seen: rank {rank} has loaded " + ", ".join(f"{name} of rank {of}" for name, of in seen[rank].items()))
raise SystemExit(not (seen[0] == seen[1] and set(seen[0].values()) == {0, 1}))
PY
