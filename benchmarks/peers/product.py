"""The yardstick: nothing but the encoder product of a step, into one reused buffer."""

import time

import torch
from torch import Tensor

from benchmarks.harness.worker import Batches, Job

BUFFER_MIB = (8, 12, 24, 64, 256)
"""Sizes of the buffer that are tried; the fastest is kept, so that the yardstick is as hard as it can be."""


def train(job: Job, batches: Batches) -> None:
    """x @ W_encᵀ, chunk by chunk; x is converted once per batch."""
    dtype = getattr(torch, job.options["dtype"])
    W_enc = torch.randn(job.num_latents, job.d_in, device=job.device).to(dtype)
    buffer = None
    with torch.no_grad():
        for x in batches:
            rows = x.to(dtype)
            buffer = fastest_buffer(rows, W_enc) if buffer is None else buffer
            product(rows, W_enc, buffer)


def product(x: Tensor, W: Tensor, buffer: Tensor) -> None:
    """x @ Wᵀ, as many rows at a time as `buffer` holds."""
    for rows in x.split(len(buffer)):
        torch.mm(rows, W.T, out=buffer[: len(rows)])


def fastest_buffer(x: Tensor, W: Tensor) -> Tensor:
    """A buffer of the size with which the product is fastest."""
    rows = {min(len(x), max(1, mib * 2**20 // (len(W) * x.element_size()))) for mib in BUFFER_MIB}
    best = min(sorted(rows), key=lambda count: _seconds(x, W, x.new_empty(count, len(W))))
    return x.new_empty(best, len(W))


def _seconds(x: Tensor, W: Tensor, buffer: Tensor) -> float:
    """The best of three, after one to warm up."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        product(x, W, buffer)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])
