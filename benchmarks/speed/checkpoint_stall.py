"""How long training stops for a checkpoint: `python -m benchmarks.speed.checkpoint_stall [FOLDER]`.

Three autoencoders of d_in 576 and 18,432 latents, with Adam's moments; times of `Saver.start` against the whole of
`checkpoint.save`, which was called in its place before, and against a copy that is written meanwhile.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from sae.config import SaeConfig
from sae.dictionary.autoencoder import Sae
from sae.runs import checkpoint
from sae.runs.background_save import Saver
from sae.runs.checkpoint import Checkpoint
from sae.training.learner import SaeLearner

D_IN, NUM_LATENTS, COUNT, REPEATS = 576, 18432, 3, 5


def make_state(device: str) -> Checkpoint:
    saes = {f"layers.{i}": Sae(D_IN, SaeConfig(num_latents=NUM_LATENTS), device=device) for i in range(COUNT)}
    options = {"tokens_per_step": 1, "auxk_alpha": 0.0, "dead_feature_threshold": 10**7}
    learners = {n: SaeLearner(sae, compute_dtype=torch.bfloat16, **options) for n, sae in saes.items()}
    return Checkpoint(saes, {name: learner.state_dict() for name, learner in learners.items()}, {"source": {}})


def seconds(action, *arguments) -> float:
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


def main(folder: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    state = make_state(device)
    saver = Saver(folder / "beside", keep_last=1)
    for repeat in range(REPEATS):
        state.trainer["step"] = repeat
        whole = seconds(checkpoint.save, folder / f"whole_{repeat}", repeat, state)
        stall = seconds(saver.start, state)
        rest = seconds(saver.wait)
        size = sum(path.stat().st_size for path in (folder / f"whole_{repeat}").rglob("*") if path.is_file())
        print(f"{device}: {size / 1e6:,.0f} MB; written while training waits {whole:.2f} s; copied {stall:.3f} s, ",
              f"then written beside it {rest:.2f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="on the disk to measure; by default the system's for temporary files")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        main(Path(folder))
