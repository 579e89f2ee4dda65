"""On what a run was measured: no names of hosts or people."""

import os
import platform
import re
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.peers import environments


def describe(device: str, threads: int) -> dict[str, Any]:
    """Processor, cores, memory, accelerator, operating system."""
    return {
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "bf16": _capabilities(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def label(machine: dict[str, Any]) -> str:
    """A name for a file: the processor and its cores, or the accelerator."""
    name = machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ours_first() -> dict[str, str]:
    """The environment in which `import sae` and `import benchmarks` find this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def load() -> dict[str, Any]:
    """The load averages of the last 1, 5 and 15 minutes, our own work included."""
    return {"at": time.strftime("%H:%M"), "load_average": [round(value, 2) for value in os.getloadavg()]}


def versions(libraries: list[str]) -> dict[str, dict[str, str]]:
    """Versions of torch and transformers beside every library that took part."""
    found = {"sae": {name: metadata.version(name) for name in ("sae", "torch", "transformers")}}
    for library in libraries:
        if library in environments.PEERS:
            packages = (environments.PEERS[library].package, "torch", "transformers")
            try:
                found[library] = environments.versions(environments.python_of(library), packages)
            except environments.PeerError as error:
                found[library] = {"not installed:": str(error)}
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    found = {name.strip(): value.strip() for name, value in fields.items()}
    model = found.get("model name", platform.machine())
    family = f" (family {found['cpu family']}, model {found['model']})" if "cpu family" in found else ""
    return model + family


def _capabilities() -> str:
    names = getattr(torch.cpu, "get_capabilities", dict)()
    found = [name for name in ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx512_f", "avx2") if names.get(name)]
    return " ".join(found)
