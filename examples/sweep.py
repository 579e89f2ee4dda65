"""Train every combination of k and width on the same activations, in one run, and list what each costs in error.

    python examples/sweep.py

The language model runs once for all of them. Each is, bit for bit, what it would be if it were trained alone.
"""

import json

from embedded import MODEL, TOKENS, documents

from sae import Sae, SaeConfig, SaeTrainer, TrainConfig, lm
from sae.data import chunk_and_tokenize


def main() -> None:
    device = lm.check_device()
    model = lm.load_model(MODEL, device=device, dtype=lm.compute_dtype(device))
    tokens = chunk_and_tokenize(documents("train"), lm.load_tokenizer(MODEL), max_seq_len=256)

    shapes = [SaeConfig(k=k, expansion_factor=factor) for k in (16, 32) for factor in (4, 8)]
    cfg = TrainConfig(shapes, layers=[10], batch_size=16, max_tokens=TOKENS, save_dir="checkpoints")
    checkpoint = SaeTrainer(cfg, tokens, model).fit()  # lr=[1e-3, 4e-3] and seed=[0, 1] would multiply them

    run = checkpoint.parent
    measured = json.loads((run / "evaluation.json").read_text())  # by <label>/<hookpoint>, on held-out tokens
    saes = Sae.load_many(checkpoint)
    for name in sorted(saes, key=lambda name: measured[name]["fvu"]):
        shape = f"{saes[name].num_latents:,} latents, k {saes[name].cfg.k}"
        print(f"{name:20} {shape:24} FVU {measured[name]['fvu']:.4f}")
    print(f"{run / 'frontier.png'} shows FVU against L0")


if __name__ == "__main__":
    main()
