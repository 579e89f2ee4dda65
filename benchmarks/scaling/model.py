"""What a step should cost: FLOP of its one dense product, bytes of everything else, and memory by docs/scaling.md."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sae.activations.shuffle import STEPS, batches_per_block
from sae.ops.encode import CHUNK_BYTES


@dataclass(frozen=True)
class Size:
    """Sizes of a step."""

    d_in: int = 128
    latents: int = 16_384
    k: int = 32
    tokens: int = 2048
    """Tokens that one process reads in a step."""
    hookpoints: int = 1
    configurations: int = 1
    """Configurations of a sweep."""
    processes: int = 1


@dataclass(frozen=True)
class Machine:
    """Speed of one core here, measured beside the steps."""

    flops: float
    """FLOP a second of a product in the type that steps compute in."""
    bandwidth: float
    """Bytes a second, read and written, of a pass over a tensor that no cache holds."""


def measured_machine(dtype: torch.dtype, size: Size) -> Machine:
    """The machine's speeds, each the best of five."""
    x, w = torch.randn(size.tokens, size.d_in).to(dtype), torch.randn(size.latents, size.d_in).to(dtype)
    out, large = torch.empty(size.tokens, size.latents, dtype=dtype), torch.zeros(2**27)
    product = min(_seconds(lambda: torch.mm(x, w.T, out=out)) for _ in range(5))
    added = min(_seconds(lambda: large.add_(1.0)) for _ in range(5))
    return Machine(2 * size.tokens * size.d_in * size.latents / product, 2 * large.nbytes / added)


def _seconds(work: object) -> float:
    started = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - started


def step_seconds(size: Size, machine: Machine) -> float:
    """The model's time of a step: one product, its result read once, four gathers, and an optimizer of 48 bytes.

    The optimizer reads and writes weights in fp32 and a moment in bf16, and writes both matrices once more in bf16.
    """
    n, d, m, k = size.tokens, size.d_in, size.latents, size.k
    moved = 4 * n * m + 4 * 4 * n * k * d + 2 * 24 * m * d
    return size.hookpoints * size.configurations * (2 * n * d * m / machine.flops + moved / machine.bandwidth)


def memory_bytes(size: Size) -> float:
    """Memory that the trainer takes in a process of a CPU, by the formulas of docs/scaling.md.

    Activations are float32. One process has no gradients as matrices, several have.
    """
    n, d, m = size.tokens, size.d_in, size.latents
    each = (16 if size.processes == 1 else 24) * m * d + 12 * n * d
    once = 2 * m * (d + min(128, d // 4)) + 15 * n * d + CHUNK_BYTES["cpu"]
    batch = n * d * 4 * size.hookpoints
    block = STEPS * batch if batches_per_block(1, batch) > 1 else 0
    return size.hookpoints * size.configurations * each + once + 2 * block


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of ln value over ln size, by least squares."""
    x, y = ([math.log(each) for each in numbers] for numbers in (sizes, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
