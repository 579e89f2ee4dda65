#!/usr/bin/env bash
# accelerate's gather_for_metrics of rows for tokens: of the last batch it keeps as many rows as samples are left, so most of its tokens are dropped.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0 accelerate==1.15.0
"$python" -W ignore - 2>/dev/null <<'PY'
import os
import socket

import accelerate
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator

RANKS, SEQ, WIDTH, BATCH = 2, 128, 3, 4
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(RANKS)}


def work(rank, texts, told):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    accelerator = Accelerator(cpu=True)
    counts = {"texts": 0, "tokens": 0}
    last = {}
    for batch in accelerator.prepare(torch.utils.data.DataLoader(torch.arange(texts), batch_size=BATCH)):
        acts = batch[:, None, None].expand(-1, SEQ, WIDTH).float()  # each token's activations are its text's number
        for name, rows in (("texts", acts), ("tokens", acts.flatten(0, 1))):
            gathered = accelerator.gather_for_metrics(rows).reshape(-1, WIDTH)
            counts[name] += len(gathered)
            last[name] = gathered[:, 0].unique().int().tolist()
    if rank == 0:
        told.put((counts, last))
    accelerator.end_training()


print(f"accelerate {accelerate.__version__}, torch {torch.__version__}, {RANKS} processes, {BATCH} texts of {SEQ} tokens in a batch of each")
print("expected: gathered as (texts, tokens, width) or as (texts * tokens, width), all tokens come, and those that only fill a batch do not")
seen = {}
for texts in (16, 13, 10):
    told = mp.get_context("fork").SimpleQueue()
    mp.start_processes(work, (texts, told), nprocs=RANKS, start_method="fork")
    counts, last = told.get()
    seen[texts] = counts["texts"] - texts * SEQ, counts["tokens"] - texts * SEQ
    print(f"seen: {texts} texts, {texts * SEQ} tokens: gathered as texts {counts['texts']}, as tokens {counts['tokens']}; of the last batch texts {last['texts']} and texts {last['tokens']}")
raise SystemExit(seen != {16: (0, 0), 13: (0, 5 - 5 * SEQ), 10: (0, 2 - 2 * SEQ)})
PY
