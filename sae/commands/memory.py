"""Errors of memory, told to who typed the command."""

from collections.abc import Collection

_EXHAUSTED = "out of memory", "can't allocate memory", "ALLOC_FAILED"
"""What a RuntimeError says that is about memory: CUDA's, MPS' and the processor's allocators, and cuBLAS."""

_LESS = {
    "micro_acc_steps": "a higher --micro_acc_steps",
    "batch_size": "a lower --batch_size",
    "num_latents": "fewer --num_latents",
    "hookpoints": "fewer --hookpoints",
}
"""Options that change what is needed at a time, and how."""


def is_exhausted(error: Exception) -> bool:
    """Whether an error says that the memory of a device is used up."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _EXHAUSTED)
    return said or isinstance(error, MemoryError)


def what_takes_less(error: Exception, options: Collection[str]) -> str:
    """A sentence on an error of memory, and which of a command's `options` make it need less."""
    told = str(error).strip().split("\n")[0].partition(". GPU ")[0].rpartition("err == 0. ")[2].rstrip(".")[:200]
    ways = ", ".join(way for name, way in _LESS.items() if name in options)
    return (
        f"memory must hold what is computed at a time, but is used up ({told or type(error).__name__}); "
        f"try {ways}{' or ' * bool(ways)}a device with more"
    )
