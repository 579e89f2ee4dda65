"""Real activations for the quality comparison, kept on disk: `python -m benchmarks.quality.data --tokens 1000000`.

One pass of a language model over a text (`texts.py`, the same on every machine) writes the outputs of an early, a
middle and a late block, in bf16, without each sequence's first token (an attention sink that carries nearly all of the
variance): 3.5 GB for a million tokens. `--layers 9` keeps a third of that, and blocks behind it do not run. The model
is SmolLM2-135M, or for the text `gpt2` a small GPT-2 that reads the English one (`small_gpt2.py`). The sequences are
in random order, and tokens are mixed within blocks of 65,280. The first block is split into tokens to choose settings
on (`validation`) and tokens to report (`test`); nobody trains on either. The command continues where it stopped.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import CACHE
from benchmarks.harness import inputs
from benchmarks.harness.language_models import load
from benchmarks.quality import small_gpt2, texts
from sae.lm import compute_dtype

LAYERS = (2, 9, 20)
CTX_LEN = 256
BLOCK_SEQUENCES = 256
VALIDATION_SEQUENCES = 80


@dataclass(frozen=True)
class Reader:
    """A language model, and the blocks whose outputs are kept."""

    folder: Callable[[], Path]
    blocks: str
    """What the module that holds the blocks is called."""
    d_in: int
    layers: tuple[int, ...]


SMOLLM2 = Reader(inputs.model_folder, "layers", inputs.REAL_D_IN, LAYERS)
GPT2 = Reader(lambda: small_gpt2.folder(np.load(token_file("gpt2"))), "h", small_gpt2.WIDTH, (1, 3))
READERS = {"english": SMOLLM2, "python": SMOLLM2, "gpt2": GPT2}
TEXTS = tuple(READERS)


@dataclass(frozen=True)
class Source:
    """The activations of one block of the model on one text."""

    text: str
    layer: int

    @property
    def path(self) -> Path:
        """A raw file of rows (d_in) in bf16."""
        return _folder(self.text) / f"layers.{self.layer}.bf16"

    def blocks(self) -> int:
        """Number of whole blocks on the disk."""
        size = self.path.stat().st_size if self.path.exists() else 0
        return size // (_block() * READERS[self.text].d_in * 2)

    def rows(self) -> Tensor:
        """All rows so far, (tokens, d_in) bf16, mapped from the disk: validation, test, training."""
        raw = np.memmap(self.path, dtype=np.int16, mode="c").reshape(-1, READERS[self.text].d_in)
        return torch.from_numpy(raw).view(torch.bfloat16)  # type: ignore[no-any-return]

    def validation(self) -> Tensor:
        """Tokens to choose settings on."""
        return self.rows()[: VALIDATION_SEQUENCES * (CTX_LEN - 1)].float()

    def test(self) -> Tensor:
        """Tokens to report."""
        return self.rows()[VALIDATION_SEQUENCES * (CTX_LEN - 1) : _block()].float()

    def train(self) -> Tensor:
        """Tokens to train on."""
        return self.rows()[_block() :]


def collect(text: str, tokens: int, device: str = "cpu", layers: Sequence[int] | None = None) -> None:
    """Write activations of these layers until there are `tokens` to train on, or the text ends.

    `layers` None: all of the text's.
    """
    sources = [Source(text, layer) for layer in layers or READERS[text].layers]
    begun = {source.layer: source.blocks() for source in sources}
    wanted = -(-tokens // _block()) + 1
    if min(begun.values()) >= wanted:
        return
    sequences = torch.from_numpy(np.load(token_file(text)))
    reader = READERS[text]
    model = load(str(reader.folder()), torch.device(device), compute_dtype(torch.device(device)))
    for block in range(min(begun.values()), min(wanted, len(sequences) // BLOCK_SEQUENCES)):
        rows = sequences[block * BLOCK_SEQUENCES : (block + 1) * BLOCK_SEQUENCES]
        missing = [layer for layer, blocks in begun.items() if blocks <= block]
        for layer, values in _harvest(reader, model, rows, missing, mixed=block > 0, seed=block).items():
            with Source(text, layer).path.open("r+b" if block else "wb") as file:
                file.seek(block * _block() * values.shape[1] * 2)
                file.write(values.view(torch.int16).numpy().tobytes())
        print(f"{text}: {block * _block():,} tokens to train on", flush=True)


def _harvest(
    reader: Reader, model: torch.nn.Module, sequences: Tensor, layers: Sequence[int], *, mixed: bool, seed: int
) -> dict[int, Tensor]:
    """The activations of one block, (tokens, d_in) bf16 by layer."""
    from sae.lm import harvest

    names = {layer: f"{reader.blocks}.{layer}" for layer in layers}
    device = next(model.parameters()).device
    parts = [harvest(model, rows, list(names.values())) for rows in sequences.split(16 if device.type == "cpu" else 64)]
    order = torch.arange(_block())
    if mixed:
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
    return {
        layer: torch.cat([part[name][:, 1:].flatten(0, 1) for part in parts])[order.to(device)].bfloat16().cpu()
        for layer, name in names.items()
    }


def token_file(text: str) -> Path:
    """A .npy file (sequences, CTX_LEN) of the text's tokens, in random order."""
    path = _folder(text) / "tokens.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        is_gpt2 = text == "gpt2"
        np.save(path, small_gpt2.frequent_kinds(np.load(token_file("english"))) if is_gpt2 else _tokenised(text))
    return path


def _tokenised(text: str) -> np.ndarray:
    from sae.lm import load_tokenizer

    tokenizer = load_tokenizer(str(inputs.gguf()))
    ids: list[int] = []
    for document in documents(text):
        ids += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
    rows = np.array(ids[: len(ids) // CTX_LEN * CTX_LEN], dtype=np.int64).reshape(-1, CTX_LEN)
    return np.random.default_rng(0).permutation(rows)


def documents(text: str) -> list[str]:
    """English prose (the documentation of packages) or Python source, mixed."""
    folder = CACHE / "texts"
    found = list(texts.english(folder) if text == "english" else texts.python(folder))
    return [found[place] for place in np.random.default_rng(0).permutation(len(found))]


def _folder(text: str) -> Path:
    return CACHE / "quality" / text


def _block() -> int:
    return BLOCK_SEQUENCES * (CTX_LEN - 1)


def main() -> None:
    """Collect what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", choices=TEXTS, default="english")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="to train on")
    parser.add_argument("--layers", type=int, nargs="+", help="blocks to keep; default: all of the text's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the language model runs")
    chosen = parser.parse_args()
    unknown = set(chosen.layers or ()) - set(READERS[chosen.text].layers)
    if unknown:
        known = " ".join(map(str, READERS[chosen.text].layers))
        parser.error(f"--layers must be among {known} for --text {chosen.text}, got {min(unknown)}")
    collect(chosen.text, chosen.tokens, chosen.device, chosen.layers)


if __name__ == "__main__":
    main()
