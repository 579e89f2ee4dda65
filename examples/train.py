"""Train sparse autoencoders at two layers of a language model at once.

    python examples/train.py

Ends with a table of held-out FVU, L0 and unused latents. The other examples take the folder that it prints.
"""

from embedded import MODEL, TOKENS, documents

from sae import Sae, SaeConfig, SaeTrainer, TrainConfig, lm
from sae.data import chunk_and_tokenize


def main() -> None:
    device = lm.check_device()  # CUDA where there is one; lm.check_device("cuda:1") for another
    model = lm.load_model(MODEL, device=device, dtype=lm.compute_dtype(device))
    tokens = chunk_and_tokenize(documents("train"), lm.load_tokenizer(MODEL), max_seq_len=256)

    cfg = TrainConfig(
        SaeConfig(expansion_factor=8, k=32),  # 8 latents for each dimension of the activations, 32 active per token
        layers=[6, 10],
        batch_size=16,  # sequences per forward pass
        max_tokens=TOKENS,  # the learning rate follows the length of the run
        save_dir="checkpoints",
    )
    checkpoint = SaeTrainer(cfg, tokens, model).fit()

    for hookpoint, sae in Sae.load_many(checkpoint).items():
        print(f"{hookpoint}: {sae.num_latents:,} latents on activations {sae.d_in} wide")
    print(checkpoint)


if __name__ == "__main__":
    main()
