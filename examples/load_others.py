"""Load dictionaries that another library wrote, run them, and write them in this project's format.

    python examples/load_others.py SOURCE TARGET

SOURCE is a folder, a file or a hub id; the format is recognised by the names of files (docs/formats.md).
`sae convert checkpoints/RUN theirs --to saelens` makes one to try.
"""

import sys
from pathlib import Path

from embedded import MODEL, documents

from sae import Sae, lm


def main(source: str, target: str) -> None:
    device = lm.check_device()
    model = lm.load_model(MODEL, device=device, dtype=lm.compute_dtype(device))
    tokenizer = lm.load_tokenizer(MODEL)
    text = documents("test")["text"][0]
    tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=256).input_ids  # (1, seq)

    for name, dictionary in Sae.load_many(source, device=device).items():
        spec = dictionary.spec
        hookpoint = name.rpartition("/")[2]  # of several at one hookpoint, each has a folder before it
        own = f"{hookpoint}.input" if dictionary.reads_input else hookpoint  # a transcoder reads a module's input
        reads, writes = next(iter(spec.reads), own), next(iter(spec.writes), hookpoint)
        found = lm.harvest(model, tokens, [reads, writes])
        out = dictionary(found[reads], found[writes])
        fired = (out.top_acts > 0).sum(-1).float().mean()
        print(f"{name}: {spec.selection}, {spec.d_in} wide, {spec.num_latents:,} latents", end="; ")
        print(f"FVU {out.fvu:.4f} at L0 {fired:.1f} on {tokens.shape[1]} tokens")
        dictionary.save_to_disk(Path(target) / name)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
