"""Memory that the trainer takes for one autoencoder on a CPU, beside the formula of docs/scaling.md.

python benchmarks/memory.py [d_in [num_latents [tokens [recipe]]]]
"""

import sys
import tempfile

import engine_sae
import measure
import torch
from worker import Job

from sae.activations.shuffle import STEPS, batches_per_block
from sae.ops.encode import CHUNK_BYTES


def main(d_in: int = 768, num_latents: int = 24_576, tokens: int = 4096, recipe: str = "default") -> None:
    """Train until the shuffle has met its second block, and print what that took."""
    rows = torch.randn(tokens, d_in)
    job = Job("sae", {"recipe": recipe}, d_in=d_in, num_latents=num_latents, tokens=tokens)
    before = measure.resident_bytes("VmRSS") or 0
    with tempfile.TemporaryDirectory() as folder:
        trainer = engine_sae.given_trainer(job, rows, folder)
        for _ in range(STEPS + 1):
            trainer.train_step()
            trainer.metrics(tokens_per_second=0.0)
    measured = (measure.resident_bytes("VmHWM") or 0) - before
    each = 28 * d_in + 2 * min(128, d_in // 4) if recipe == "default" else 34 * d_in
    formula = each * num_latents + 20 * tokens * d_in + CHUNK_BYTES["cpu"]
    shuffle = 2 * batches_per_block(1, rows.nbytes) * rows.nbytes
    print(
        f"{recipe}, d_in {d_in}, {num_latents} latents, {tokens} tokens: formula {formula / 1e6:.0f} MB and "
        f"{shuffle / 1e6:.0f} of the shuffle, measured {measured / 1e6:.0f}, "
        f"without the shuffle {(measured - shuffle) / 1e6:.0f}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
