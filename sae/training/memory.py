"""Free memory of a device."""

import psutil
import torch


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on `device`; None if it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available if device.type == "cpu" else None
