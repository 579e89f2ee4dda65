"""Memory that one autoencoder takes in training on a CPU, beside the formula of docs/scaling.md.

python benchmarks/memory.py [d_in [num_latents [tokens [recipe]]]]
"""

import sys
from pathlib import Path

import torch

from sae import Sae, SaeConfig
from sae.learner import SaeLearner
from sae.ops.encode import CHUNK_BYTES
from sae.optim import Recipe, firings


def resident() -> float:
    """MB of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def peak() -> float:
    """MB of this process at most so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def main(d_in: int = 768, num_latents: int = 24_576, tokens: int = 4096, recipe: str = "default") -> None:
    """Train four steps, and print what they took."""
    x = torch.randn(tokens, d_in)
    before = resident()
    sae = Sae(d_in, SaeConfig(num_latents=num_latents, k=32))
    learner = SaeLearner(
        sae,
        tokens_per_step=tokens,
        auxk_alpha=0.0,
        dead_feature_threshold=10**7,
        compute_dtype=torch.bfloat16,
        recipe=Recipe.named(recipe, 1000, firings(tokens, sae.cfg.k, num_latents)),
    )
    learner.initialise(x)
    for _ in range(4):
        learner.accumulate(x)
        learner.update(1e-4)
    each = 28 * d_in + 2 * min(128, d_in // 4) if recipe == "default" else 34 * d_in
    formula = (each * num_latents + 20 * tokens * d_in + CHUNK_BYTES["cpu"]) / 1e6
    print(
        f"{recipe}, d_in {d_in}, {num_latents} latents, {tokens} tokens: formula {formula:.0f} MB, "
        f"measured {peak() - before:.0f}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
