"""Token files: nothing but token ids, .bin (16, 32 or 64 bits each, little endian) or .npy; read without loading."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sae.storage.damage import DAMAGED

SAMPLE_BYTES = 1 << 20  # bytes at the start of a file by which it is checked


class MemmapTokens:
    """Sequences of one length, one after the other in a `.bin` or `.npy` file. Tokens after the last whole one are
    lost.

    Rows of an array are joined. Tokens of a `.bin` file are 64 bits wide if its start reads as 64-bit numbers that are
    all below 2**32. They are 32 bits wide if `vocab_size` needs it, or if the start reads as 32-bit numbers that are
    all below 65536; else 16.

    Args:
        path: The file; it is read without loading.
        ctx_len: Tokens of a sequence.
        vocab_size: Token ids that the language model has.

    Raises:
        ValueError: If the file's size, its first tokens or its length do not fit.
    """

    def __init__(self, path: str | os.PathLike[str], ctx_len: int, vocab_size: int) -> None:
        self.path = os.fspath(path)
        self.ctx_len = ctx_len
        tokens = _npy_tokens(self.path) if self.path.lower().endswith(".npy") else _bin_tokens(self.path, vocab_size)
        if len(tokens) < ctx_len:
            raise ValueError(
                f"token file must hold at least one sequence of ctx_len={ctx_len} tokens, got {len(tokens)} tokens in "
                f"{self.path!r}; lower --ctx_len or use a longer file"
            )
        _check_vocabulary(self.path, tokens[: SAMPLE_BYTES // tokens.itemsize], vocab_size)
        self._rows = tokens[: len(tokens) // ctx_len * ctx_len].reshape(-1, ctx_len)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: Sequence[int]) -> Int64[Tensor, "n ctx_len"]:
        return self.take(indices)

    def take(self, indices: Sequence[int]) -> Int64[Tensor, "n ctx_len"]:
        """Sequences by number.

        Args:
            indices: Numbers of sequences.

        Returns:
            Token ids (n, ctx_len), int64.
        """
        return torch.from_numpy(self._rows[np.asarray(indices, np.int64)].astype(np.int64))


def _bin_tokens(path: str, vocab_size: int) -> np.ndarray:
    width = _token_width(path, os.path.getsize(path), vocab_size)
    return np.memmap(path, dtype=f"<u{width}", mode="r") if os.path.getsize(path) else np.zeros(0, np.uint16)


def _npy_tokens(path: str) -> np.ndarray:
    """The whole numbers of an array, row after row."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy lets through whatever its parser of a header raises
        raise ValueError(
            f"a .npy file must hold an array of token ids, got {path!r}, but {DAMAGED}; write it again"
        ) from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.integer):
        found = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"a .npy file must hold an array of token ids, got {found} in {path!r}; save whole numbers")
    return array.reshape(-1)


def _token_width(path: str, num_bytes: int, vocab_size: int) -> int:
    """Bytes per token, 2, 4 or 8."""
    if _reads_as(8, path, num_bytes):
        return 8
    width = 4 if vocab_size > 1 << 16 or _reads_as(4, path, num_bytes) else 2
    if num_bytes % width:
        raise ValueError(
            f"token file must be a multiple of {width} bytes long ({8 * width}-bit tokens, vocabulary {vocab_size}), "
            f"got {num_bytes} bytes in {path!r}; write it again, or check that it is a file of token ids"
        )
    return width


def _reads_as(width: int, path: str, num_bytes: int) -> bool:
    """Whether the first numbers, `width` bytes each, have upper halves of zeros; if of 8, not the lower ones too."""
    if num_bytes == 0 or num_bytes % width:
        return False
    halves = np.fromfile(path, dtype=f"<u{width // 2}", count=2 * SAMPLE_BYTES // width).reshape(-1, 2)
    return not halves[:, 1].any() and (width < 8 or bool(halves[:, 0].any()))


def _check_vocabulary(path: str, sample: np.ndarray, vocab_size: int) -> None:
    index = int(sample.argmax())
    if sample[index] >= vocab_size:
        raise ValueError(
            f"tokens must be below the vocabulary size {vocab_size}, got {sample[index]} at position {index} of "
            f"{path!r} (read as {8 * sample.itemsize}-bit tokens); use the model whose tokenizer wrote the file"
        )
