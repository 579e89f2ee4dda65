"""Token files: the same tokens, whatever their width, without reading the file."""

import os

import numpy as np
import pytest
import torch

from sae.data import MemmapTokens


def write(path, tokens, dtype, tail=b""):
    path.write_bytes(np.asarray(tokens, dtype).tobytes() + tail)
    return path


WIDTHS = [("<u2", 1000), ("<u4", 1000), ("<u4", 100_000), ("<i8", 1000), ("<u8", 100_000)]


@pytest.mark.parametrize(("dtype", "vocab_size"), WIDTHS)
@pytest.mark.parametrize("ctx_len", [1, 7, 16])
def test_sequences_are_the_file_cut_to_length_without_its_tail(tmp_path, dtype, vocab_size, ctx_len):
    tokens = torch.randint(1, 1000, (100,))
    sequences = MemmapTokens(write(tmp_path / "t.bin", tokens, dtype), ctx_len, vocab_size)
    expected = tokens[: 100 // ctx_len * ctx_len].view(-1, ctx_len)
    assert len(sequences) == len(expected)
    order = torch.randperm(len(expected)).tolist()
    assert torch.equal(sequences.take(order), expected[order])
    assert torch.equal(sequences[order[:2]], expected[order[:2]])
    assert sequences.take([]).shape == (0, ctx_len)


def test_a_file_larger_than_memory_is_not_read(tmp_path):
    path = tmp_path / "huge.bin"
    path.touch()
    os.truncate(path, 1 << 40)  # no space is taken by the hole
    sequences = MemmapTokens(path, 1024, 50_000)
    assert len(sequences) == (1 << 40) // 4 // 1024
    assert torch.equal(sequences.take([len(sequences) - 1]), torch.zeros(1, 1024, dtype=torch.int64))


@pytest.mark.parametrize(
    ("tokens", "dtype", "tail", "vocab_size", "message"),
    [
        ([1, 2, 3, 4], "<u2", b"x", 1000, "multiple of 2 bytes long .* got 9 bytes"),
        ([1, 2, 3, 4], "<u4", b"xy", 100_000, "multiple of 4 bytes long .* got 18 bytes"),
        ([1, 2, 3], "<u2", b"", 1000, "at least one sequence of ctx_len=4 tokens, got 3"),
        ([], "<u2", b"", 1000, "at least one sequence of ctx_len=4 tokens, got 0"),
        ([1, 2, 3, 1000, 5], "<u2", b"", 1000, "below the vocabulary size 1000, got 1000 at position 3"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_that_says_why(tmp_path, tokens, dtype, tail, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        MemmapTokens(write(tmp_path / "t.bin", tokens, dtype, tail), 4, vocab_size)
