"""A model and tokens in files, as the command line takes them."""

from pathlib import Path

import numpy as np
import torch
from tiny_models import VOCAB_SIZE, save_tiny

READING = ["--ctx_len", "16", "--batch_size", "4", "--layers", "0", "2"]


def some_texts(number: int) -> list[str]:
    """So many texts of a line, no two alike."""
    line = "The quick brown fox jumps over the lazy dog: {0} times, or {1}, while the models read on and on. "
    return [line.format(index, index**2) for index in range(number)]


def text(folder: Path) -> tuple[str, str]:
    """The folder of a tiny model and a file of 1,920 tokens, written into `folder`."""
    save_tiny(folder / "model", "gpt_neox")
    ids = torch.randint(3, VOCAB_SIZE, (120 * 16,), generator=torch.Generator().manual_seed(1))
    ids.numpy().astype(np.uint16).tofile(folder / "tokens.bin")
    return str(folder / "model"), str(folder / "tokens.bin")
