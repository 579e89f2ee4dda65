"""Free memory of a device."""

import ctypes
import sys

import psutil
import torch


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on `device`; None if it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available if device.type == "cpu" else None


def return_freed_memory() -> None:
    """Give the memory that was freed back to Linux, where glibc keeps it: what comes next takes other sizes.

    Data sets and tokenizers leave 200 MB, a first look 80 (SmolLM2).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
