"""Measure a cache of activations: `read DIR`, how fast it is read; `int8 DIR`, what int8 costs.

DIR is a bf16 cache that `sae cache` wrote. `int8` rounds a copy of it, trains on both, and measures each on both.
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from sae import SaeConfig, SaeTrainer, TrainConfig
from sae.activations.cache.format import (
    CacheManifest,
    decode_rows,
    encode_rows,
    manifest_to_json,
    read_manifest,
    row_bytes,
)
from sae.activations.cache.read import CachedActivations, held_out_batches
from sae.data import ActivationCache
from sae.evaluation.reconstruction import evaluate_reconstruction
from sae.storage.files import MANIFEST, sha256_of


def read(folder: Path) -> None:
    """Print GB a second, by the clock and by the processor, of plain reading and of the cache; from disk and memory."""
    for name, function in (("files", read_files), ("cache", read_cache)) * 2:
        for forget in (True, False):
            if forget:
                forget_pages(folder)
            print(f"{name} {'from the disk' if forget else 'from memory'}: {speed(function, folder)}", flush=True)


def speed(function: Callable[[Path], int], folder: Path) -> str:
    """Bytes that the function read, in GB a second."""
    clock, processor = time.perf_counter(), time.process_time()
    size = function(folder) / 1e9
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    return f"{size:.2f} GB, {size / clock:.2f} GB/s, {size / processor:.2f} GB a processor second"


def read_files(folder: Path) -> int:
    """Read the training rows and do nothing with them."""
    size = 0
    for path in sorted((folder / "train").rglob("*.rows")):
        with path.open("rb", buffering=0) as file:
            while block := file.read(2**24):
                size += len(block)
    return size


def read_cache(folder: Path) -> int:
    """Read the training rows as training does, batches of 8 sequences."""
    cache = ActivationCache(folder)
    source = CachedActivations(cache, list(cache.header.hookpoints), 8)
    return sum(acts.nbytes for batch in source for acts in batch.values())


def forget_pages(folder: Path) -> None:
    """Let the system drop what it keeps of the files in memory."""
    os.sync()
    for path in folder.rglob("*.rows"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def int8(folder: Path) -> None:
    """Print held-out FVU of autoencoders (expansion 8, two seeds) trained on bf16 and on int8, measured on both."""
    with TemporaryDirectory() as place:
        rounded = Path(place) / "int8"
        round_to_int8(folder, rounded)
        for seed in (42, 43):
            for trained_on in (folder, rounded):
                trainer = train(trained_on, Path(place), seed)
                for measured_on in (folder, rounded):
                    batches = held_out_batches(ActivationCache(measured_on), list(trainer.saes), 8)
                    found = evaluate_reconstruction(trainer.saes, (batch.activations for batch in batches))
                    fvus = {name: round(metrics.fvu, 4) for name, metrics in found.items()}
                    print(
                        f"seed {seed}, trained on {trained_on.name}, measured on {measured_on.name}: {fvus}", flush=True
                    )


def round_to_int8(folder: Path, rounded: Path) -> None:
    """Copy a bf16 cache and round its activations to int8."""
    manifest = read_manifest(folder)
    shutil.copytree(folder, rounded)
    for path in rounded.rglob("*.rows"):
        d_in = manifest.header.hookpoints[path.parent.name]
        rows = torch.from_numpy(np.fromfile(path, np.uint8)).view(-1, row_bytes(d_in, manifest.header.dtype))
        encode_rows(decode_rows(rows, manifest.header.dtype), "int8").numpy().tofile(path)
    files = {name: ((rounded / name).stat().st_size, sha256_of(rounded / name)) for name in manifest.files}
    header = manifest.header._replace(dtype="int8")
    (rounded / MANIFEST).write_text(manifest_to_json(CacheManifest(header, manifest.shards, files)))


def train(folder: Path, place: Path, seed: int) -> SaeTrainer:
    """Train on all of a cache; nothing is saved."""
    cfg = TrainConfig(SaeConfig(expansion_factor=8), seed=seed, log_to_wandb=False, save_dir=str(place / "runs"))
    trainer = SaeTrainer(cfg, ActivationCache(folder))
    trainer.initialise()
    while trainer.step < trainer.total_steps and trainer.train_step():
        pass
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("read", "int8"))
    parser.add_argument("folder", type=Path, metavar="DIR")
    chosen = parser.parse_args()
    {"read": read, "int8": int8}[chosen.what](chosen.folder)
