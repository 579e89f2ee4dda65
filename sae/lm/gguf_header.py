"""Header of a GGUF file: whether it is whole, and the lists in it. Format: ggml's docs/gguf.md."""

import functools
import mmap
import struct
from math import prod
from pathlib import Path
from typing import Any

LENGTH = struct.Struct("<Q")
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_START = struct.Struct("<4sIQQ")
"""Magic, version, number of tensors, number of fields."""
_KIND = struct.Struct("<I")
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the number of its type."""
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_ALIGNMENT = "general.alignment"
_DEEPEST = 4
"""Lists within lists; llama.cpp writes none."""


@functools.lru_cache(maxsize=4)
def check_whole(path: Path, stamp: tuple[int, int]) -> None:
    """Raise ValueError for a file that is no GGUF, or is cut or damaged; `stamp` tells one state of it from others.

    A file of the other byte order is left to who reads it.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as content:
            _check(content)


def _check(file: memoryview) -> None:
    if (begin := bytes(file[:4])) != _MAGIC:
        raise ValueError(f"the file must begin with {_MAGIC!r}, but begins with {begin!r}")
    reader = _Reader(file)
    _, version, num_tensors, num_fields = reader.take(_START)
    if version in (each << 24 for each in _VERSIONS):  # of the other byte order
        return
    if version not in _VERSIONS:
        raise ValueError(f"the file must be of GGUF's version 2 or 3, got {version}")
    alignment = 32
    for _ in range(num_fields):
        name, (kind,) = reader.name(), reader.take(_KIND)
        if name == _ALIGNMENT and kind == _UINT32:
            (alignment,) = _KIND.unpack_from(file, reader.at) if reader.at + _KIND.size <= len(file) else (alignment,)
        reader.pass_over(kind)
    ends = [reader.tensor() for _ in range(num_tensors)]
    begin_of_weights = reader.at + -reader.at % max(alignment, 1)
    if ends and (needed := begin_of_weights + max(ends)) > len(file):
        raise ValueError(f"the file must have the {needed:,} bytes of its weights, but ends after {len(file):,}")


class _Reader:
    """A place in a header, which moves on."""

    def __init__(self, file: memoryview) -> None:
        self.file, self.at = file, 0

    def take(self, numbers: struct.Struct) -> tuple[Any, ...]:
        """The numbers that come next."""
        begin = self.at
        self._move(numbers.size)
        return numbers.unpack_from(self.file, begin)

    def name(self) -> str:
        """The name that comes next."""
        begin = self.at
        (found,), self.at = strings(self.file, begin, 1)
        try:
            return found.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the header is damaged: the name at byte {begin:,} is no text in UTF-8") from None

    def pass_over(self, kind: int, depth: int = 0) -> None:
        """Move behind a value of a type."""
        if kind in _SIZES:
            return self._move(_SIZES[kind])
        if kind == _STRING:
            _, self.at = strings(self.file, self.at, 1)
            return None
        if kind != _ARRAY or depth > _DEEPEST:
            raise ValueError(
                f"the header is damaged: at byte {self.at:,} is a value of type {kind}, which GGUF has not"
            )
        (kind,), (count,) = self.take(_KIND), self.take(LENGTH)
        if kind in _SIZES:
            self._move(count * _SIZES[kind])
        elif kind == _STRING:
            _, self.at = strings(self.file, self.at, count)
        else:
            for _ in range(count):
                self.pass_over(kind, depth + 1)
        return None

    def tensor(self) -> int:
        """The place where the weights of the tensor that is described next end, among the weights."""
        from gguf import GGML_QUANT_SIZES

        begin = self.at
        name, (dims,) = self.name(), self.take(_KIND)
        sizes = self.take(struct.Struct(f"<{min(dims, len(self.file) // LENGTH.size)}Q"))
        (kind,), (offset,) = self.take(_KIND), self.take(LENGTH)
        if kind not in GGML_QUANT_SIZES:
            raise ValueError(
                f"the header is damaged: at byte {begin:,} are weights {name[:80]!r} of type {kind}, which GGUF has not"
            )
        in_block, bytes_of_block = GGML_QUANT_SIZES[kind]
        return int(offset + prod(sizes) // in_block * bytes_of_block)

    def _move(self, size: int) -> None:
        if self.at + size > len(self.file):
            raise ValueError(f"the file ends in its header, after {len(self.file):,} bytes")
        self.at += size


def strings(file: memoryview, at: int, count: int) -> tuple[list[bytes], int]:
    """Words, each behind its length, and where the last ends. Raises ValueError for a file that ends before."""
    found = []
    for _ in range(count):
        if at + LENGTH.size > len(file) or (end := at + LENGTH.size + LENGTH.unpack_from(file, at)[0]) > len(file):
            raise ValueError(
                f"the file ends in its header, in {f'a list of {count:,} words' if count > 1 else 'a word'}"
            )
        found.append(bytes(file[at + LENGTH.size : end]))
        at = end
    return found, at


def numbers(file: Any, at: int, count: int, kind: Any) -> tuple[list[tuple[Any]], int]:
    """Numbers of a NumPy `kind`, each in a tuple, and where the last ends. Raises as `strings` does."""
    end = at + count * kind().itemsize
    if end > len(file):
        raise ValueError(f"the file ends in its header, in a list of {count:,} numbers")
    return [(value,) for value in file[at:end].view(kind).tolist()], end
