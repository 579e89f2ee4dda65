"""Starts SAEDashboard's half, `peer.py`, in an environment of its own."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import HERE
from benchmarks.peers import environments
from sae.browser import Index

LATENTS_AT_ONCE = 128
INSTALL = (
    "python3.11 -m venv X; X/bin/pip install torch==2.13.0 sae-dashboard==0.8.0 'pyarrow<22'; with a torch for CPUs "
    "also X/bin/pip uninstall -y torchvision torchaudio"
)
"""PyArrow 26.0.1 needs NumPy 2, which TransformerLens 2.17.0 forbids, and does not tell pip."""
PACKAGES = ("sae-dashboard", "sae-lens", "transformer-lens", "transformers", "torch", "numpy")


def run(python: Path, folder: Path, model: str, tokens: np.ndarray, batches: int) -> dict[str, Any]:
    """Seconds of each batch, and how far the densities are from those of our index."""
    work = folder / "dashboard"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    np.save(work / "tokens.npy", tokens)
    config = json.loads((folder / model / "config.json").read_text())
    job = {
        "sae": str(folder / "x8-saelens/layers.9"), "model": str(folder / model), "tokens": str(work / "tokens.npy"),
        "batches": batches, "folder": str(work), "ctx_len": tokens.shape[1],
        "theta": config["rope_parameters"]["rope_theta"],
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    command = [str(python), str(HERE / "browse/peer.py"), json.dumps(job)]
    subprocess.run(command, check=True, env=environment | {"HF_HUB_OFFLINE": "1"})
    found: dict[str, Any] = json.loads((work / "times.json").read_text())
    theirs = found.pop("density")
    ours = _densities(Index.open(folder / "x8"), tokens.size)
    apart = [abs(ours[int(latent)] - value) for latent, value in theirs.items()]
    found |= {"density_mean": float(np.mean(list(theirs.values()))), "density_apart_mean": float(np.mean(apart))}
    return found | {"versions": environments.versions(python, PACKAGES)}


def _densities(index: Index, tokens: int) -> list[float]:
    """Share of the first `tokens` on which each of the first latents fires, massive tokens too, as theirs counts."""
    place = index["layers.9"]
    fired = [place[latent].activations()[0] for latent in range(4 * LATENTS_AT_ONCE)]
    return [float(np.count_nonzero(positions < tokens)) / tokens for positions in fired]
