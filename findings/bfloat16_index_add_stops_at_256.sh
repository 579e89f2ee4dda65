#!/usr/bin/env bash
# bfloat16 on a CPU: an embedding's gradient and a vector's index_add_ stop counting at 256; scatter_add_ and a matrix's do not.
set -euo pipefail
source "$(dirname "$0")/environment.sh" torch==2.13.0
"$python" -W ignore - <<'PY'
import torch
import torch.nn.functional as F

FIRES, WIDTH = 4096, 8
print(f"torch {torch.__version__}\nexpected: as each of them does with float32, {FIRES}: one row is met {FIRES} times, with 1 each time")
seen = {}
for dtype in (torch.float32, torch.bfloat16):
    row, ones = torch.zeros(FIRES, dtype=torch.long), torch.ones(FIRES, WIDTH, dtype=dtype)
    table = torch.zeros(2, WIDTH, dtype=dtype, requires_grad=True)
    bag = F.embedding_bag(row[:, None], table, per_sample_weights=ones[:, :1], mode="sum")
    sums = {
        "sum": ones.sum(0),
        "scatter_add_": torch.zeros(2, WIDTH, dtype=dtype).scatter_add_(0, row[:, None].expand(-1, WIDTH), ones)[0],
        "index_add_ of a matrix": torch.zeros(2, WIDTH, dtype=dtype).index_add_(0, row, ones)[0],
        "index_add_ of a vector": torch.zeros(2, dtype=dtype).index_add_(0, row, ones[:, 0])[:1],
        "gradient of embedding": torch.autograd.grad(F.embedding(row, table), table, ones)[0][0],
        "gradient of embedding_bag": torch.autograd.grad(bag, table, ones)[0][0],
        "coalesce": torch.sparse_coo_tensor(row[None], ones, (2, WIDTH)).coalesce().values()[0],
    }
    seen[dtype] = {name: value.max().item() for name, value in sums.items()}
    print(f"seen: {str(dtype).removeprefix('torch.')}: " + ", ".join(f"{name} {n:g}" for name, n in seen[dtype].items()))
right = {name for name, value in seen[torch.bfloat16].items() if value == FIRES}
raise SystemExit(not (set(seen[torch.float32].values()) == {FIRES} and right == {"sum", "scatter_add_", "index_add_ of a matrix"}))
PY
