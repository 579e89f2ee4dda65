"""What the launchers share: sizes of blocks, and the device to launch on."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

L2_BYTES = 24 * 2**20
"""Half of the second-level cache of an H100: it is two halves, and the far half costs a detour."""

LANE_BYTES = 16
"""The widest load of a thread; 32 threads with such loads side by side read 512 contiguous bytes."""


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever the tensors say."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def power_of_two(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 1 << max(0, least - 1).bit_length()


def ceil_div(amount: int, size: int) -> int:
    """How many blocks of `size` hold `amount`."""
    return -(-amount // size)


def slice_width(d: int, column_bytes: int) -> int:
    """How many of d columns a program takes, so that what all programs gather meanwhile fits the second-level cache.

    `column_bytes` is the size of one column of the tables gathered from. Programs for the first slice of columns run
    before those for the second, so the cache needs to hold one slice at a time. At least 128 columns (a gathered row is
    then 256 or 512 bytes long), at most 512, and a divisor of d if there is one.
    """
    width = 512
    while width > 128 and (width * column_bytes > L2_BYTES or d % width):
        width //= 2
    return min(width, power_of_two(d))


def warps_across(width: int, element_bytes: int) -> int:
    """How many warps read a row of `width` elements at once, so that a sum over rows stays within each thread."""
    return min(8, max(1, width * element_bytes // (32 * LANE_BYTES)))
