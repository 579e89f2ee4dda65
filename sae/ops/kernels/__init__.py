"""Triton kernels of the hot operations. Only the files of this folder import triton, and only once a kernel is used.

Each file has the kernels of one operation: jit functions, the heuristic that chooses their blocks, and the launcher.
The launcher has the signature and the meaning of the plain twin in `sae.ops.naive`. Blocks follow from the shapes
alone, never from timings (no autotuning), so results are bitwise equal from run to run; no kernel uses atomics.
"""

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels read; they add up in float32."""


def usable(*tensors: Tensor) -> bool:
    """Whether the doors may hand these floating-point tensors to a kernel: they are on a GPU, and triton is there."""
    return all(t.is_cuda and t.dtype in KERNEL_DTYPES for t in tensors) and _triton_compiles()


@cache
def _triton_compiles() -> bool:
    """False under TRITON_INTERPRET=1, where kernels run in Python and only their own tests want them."""
    return find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET", "0") != "1"
