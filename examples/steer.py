"""Turn one latent up while the model writes.

    python examples/steer.py checkpoints/RUN layers.10 [LATENT]

Without LATENT it takes the one that is most active on the last token of PROMPT. `sae browse RUN` shows what a latent
fires on. To ablate instead, set `latents[latent] = 0`.
"""

import sys

from embedded import MODEL

import sae
from sae import Latents, Sae, lm

PROMPT = "To open a file in Python, you"
STRENGTH = 4  # times the largest activation on the prompt's last token


def main(run: str, hookpoint: str, latent: int | None = None) -> None:
    device = lm.check_device()
    model = lm.load_model(MODEL, device=device, dtype=lm.compute_dtype(device), head=True)
    tokenizer = lm.load_tokenizer(MODEL)
    dictionary = Sae.load_many(run, [hookpoint], device)[hookpoint]
    tokens = tokenizer(PROMPT, return_tensors="pt").input_ids.to(device)  # (1, seq)

    activations = lm.harvest(model, tokens, [hookpoint])[hookpoint]  # (1, seq, d_in)
    acts, indices = dictionary.encode(activations)  # (1, seq, k) each
    largest, place = acts[0, -1].max(0)
    latent = int(indices[0, -1, place]) if latent is None else latent

    def steer(latents: Latents) -> None:
        latents[latent] += STRENGTH * float(largest)

    def written() -> str:
        return tokenizer.decode(model.generate(tokens, max_new_tokens=24, do_sample=False)[0])

    print(f"as it is:   {written()!r}")
    with sae.graft(model, {hookpoint: dictionary}, keep_error=True, edit=steer):
        print(f"with {latent}: {written()!r}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(word) for word in sys.argv[3:]))
