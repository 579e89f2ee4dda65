"""What `benchmarks.as_typed` trains and measures on. It calls this in a process of its own, to stay small itself.

benchmarks.as_typed.data place | tokens FILE ARGUMENTS… | activations CACHE FILE
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import CACHE
from benchmarks.harness import inputs

PLACE = CACHE / "as-typed"
MODEL, TEXT, HELD_OUT = "SmolLM2-135M", "documentation.jsonl", "held-out.npy"
CTX_LEN = 256
CHARACTERS, HELD_OUT_CHARACTERS = 4_000_000, 600_000
"""Of documents that a run reads, over a million tokens, and of others that nobody trains on."""
HELD_OUT_SEQUENCES = 256


def place() -> None:
    """Make a folder with the model and its tokenizer, the text of a user, and held-out tokens (sequences, CTX_LEN)."""
    from benchmarks.quality.data import documents
    from sae.lm import load_tokenizer

    PLACE.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(str(inputs.gguf()))
    model = inputs.model_folder()
    if not (PLACE / MODEL).exists():
        (PLACE / MODEL).symlink_to(model)
    if not (model / "tokenizer.json").exists():
        tokenizer.save_pretrained(model)
    if (PLACE / HELD_OUT).exists():
        return
    found = iter(documents("english"))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in _some(found, CHARACTERS))
    (PLACE / TEXT).write_text(lines, encoding="utf-8")
    ids: list[int] = []
    for text in _some(found, HELD_OUT_CHARACTERS):
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    rows = np.array(ids[: len(ids) // CTX_LEN * CTX_LEN], dtype=np.int64).reshape(-1, CTX_LEN)
    np.save(PLACE / HELD_OUT, np.random.default_rng(0).permutation(rows)[:HELD_OUT_SEQUENCES])


def _some(texts: Iterator[str], characters: int) -> list[str]:
    """The next texts, until there are so many characters."""
    found: list[str] = []
    while sum(map(len, found)) < characters:
        found.append(next(texts))
    return found


def tokens(file: Path, arguments: Sequence[str]) -> None:
    """The sequences that `sae ARGUMENTS` trains on, in its order, for a peer that gets them ready-made."""
    from sae import lm
    from sae.activations.reading import token_batches
    from sae.commands.load import check_model, load_text
    from sae.commands.table import read

    _, cfg = read(arguments)
    skeleton, _ = check_model(cfg)
    batches = token_batches(cfg, load_text(cfg, skeleton), vocab_size=lm.vocab_size(skeleton))
    np.save(file, torch.cat(list(batches)).numpy())


def activations(cache: str, file: Path) -> None:
    """The activations of a cache of one hookpoint, in its order: raw rows in bf16."""
    from sae.activations.cache.read import CachedActivations
    from sae.data import ActivationCache

    opened = ActivationCache(cache)
    source = CachedActivations(opened, list(opened.header.hookpoints), 1)
    with file.open("wb") as out:
        for batch in source:
            (rows,) = batch.values()
            out.write(rows.bfloat16().view(torch.int16).numpy().tobytes())


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "place":
        place()
    elif what == "tokens":
        tokens(Path(rest[0]), rest[1:])
    else:
        activations(rest[0], Path(rest[1]))
