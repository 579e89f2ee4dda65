"""Memory that the trainer takes for one autoencoder on a CPU, beside the formula of docs/scaling.md.

python -m benchmarks.speed.memory [d_in [num_latents [tokens [recipe]]]]
"""

import argparse
import tempfile

import torch

from benchmarks.harness import measure
from benchmarks.harness.worker import Job
from benchmarks.peers import sae as engine
from sae.activations.shuffle import STEPS, batches_per_block
from sae.ops.encode import CHUNK_BYTES


def main(d_in: int, num_latents: int, tokens: int, recipe: str) -> None:
    """Train until the shuffle has met its second block, and print what that took."""
    rows = torch.randn(tokens, d_in)
    job = Job("sae", {"recipe": recipe}, d_in=d_in, num_latents=num_latents, tokens=tokens)
    before = measure.resident_bytes("VmRSS") or 0
    with tempfile.TemporaryDirectory() as folder:
        trainer = engine.given_trainer(job, rows, folder)
        for _ in range(STEPS + 1):
            trainer.train_step()
            trainer.metrics(tokens_per_second=0.0)
    measured = (measure.resident_bytes("VmHWM") or 0) - before
    # One process on a CPU: without the gradients' 8 bytes.
    each = 16 * d_in + 2 * min(128, d_in // 4) if recipe == "default" else 26 * d_in
    formula = each * num_latents + 20 * tokens * d_in + CHUNK_BYTES["cpu"]
    shuffle = 2 * batches_per_block(1, rows.nbytes) * rows.nbytes
    print(
        f"{recipe}, d_in {d_in}, {num_latents} latents, {tokens} tokens: formula {formula / 1e6:.0f} MB and "
        f"{shuffle / 1e6:.0f} of the shuffle, measured {measured / 1e6:.0f}, "
        f"without the shuffle {(measured - shuffle) / 1e6:.0f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("d_in", 768), ("num_latents", 24_576), ("tokens", 4096)):
        parser.add_argument(name, type=int, nargs="?", default=default)
    parser.add_argument("recipe", nargs="?", default="default")
    main(**vars(parser.parse_args()))
