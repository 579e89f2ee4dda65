"""Index on disk: which files there are, of which types, and how a damaged one is noticed.

<index>/manifest.json               what it is of, and the size of every file; written last
<index>/vocabulary.json             the text of every token
<index>/tokens.u32                  token ids, sequence after sequence
<index>/counted.u8                  1 for a token that counts, 0 for an excluded one
<index>/places/<n>/starts.i64       (num_latents + 1): where the events of each latent begin
<index>/places/<n>/positions.u32    the token of each event, ascending for each latent
<index>/places/<n>/values.f16       its activation, divided by the place's scale
<index>/places/<n>/massive.u8       1 for a token that is massive at this place
<index>/places/<n>/decoder.f16      (num_latents, d): rows of W_dec of unit length
<index>/places/<n>/relative_norms.f32  (num_latents, ends): where there are several that it writes, shares in its norms
<index>/places/<n>/<column>.<type>  a number, or a few, for each latent: COLUMNS
<index>/<file>.crc                  CRC-32 of each block of BLOCK bytes of the file
<index>/chunks/                     only while it is written: events of some sequences each

A place is one dictionary at one hookpoint. All numbers are little-endian.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae.storage.files import MANIFEST, read_json, sha256_of, short, sync, write_atomically

VERSION = 2
BLOCK = 2**18
"""Bytes that have a checksum of their own: what is read is checked first, and little more than it."""
NONE = 2**32 - 1
"""In place of a position or a token: there is no further one."""
CONTEXT = 64
"""Tokens of a passage. Each counts once among the contexts of a latent, with its largest activation."""
TOP, FIFTHS, OF_EACH_FIFTH = 24, 5, 6
"""Contexts that are kept of each latent: the strongest, and some of each fifth by activation."""
RELATIVE_NORMS = "relative_norms"
BINS, FIRES_ON, LOGITS = 32, 6, 10
"""Bins of a histogram, tokens that a latent fires on, and tokens that it promotes or suppresses."""

FILE_DTYPES = {"i64": "<i8", "i32": "<i4", "u32": "<u4", "u8": "u1", "f32": "<f4", "f16": "<f2"}
COLUMNS: dict[str, tuple[str, int]] = {
    "count": ("i64", 1),
    "massive_count": ("i64", 1),
    "max": ("f32", 1),
    "mean": ("f32", 1),
    "first": ("i32", 1),
    "last": ("i32", 1),
    "contexts": ("i64", 1),
    "histogram": ("u32", BINS),
    "edges": ("f32", FIFTHS + 1),
    "top": ("u32", TOP),
    "fifths": ("u32", FIFTHS * OF_EACH_FIFTH),
    "share_tokens": ("u32", FIRES_ON),
    "shares": ("f32", FIRES_ON),
    "mean_tokens": ("u32", FIRES_ON),
    "means": ("f32", FIRES_ON),
    "alignment": ("f32", 1),
    "up_tokens": ("u32", LOGITS),
    "up_logits": ("f32", LOGITS),
    "down_tokens": ("u32", LOGITS),
    "down_logits": ("f32", LOGITS),
    "logit_histogram": ("u32", BINS),
    "logit_range": ("f32", 2),
}
"""Columns of a latent: the type of a number, and how many there are. `Latent` explains them."""
_MAX_MANIFEST_BYTES, _MAX_VOCABULARY_BYTES = 2**24, 2**27


class DamagedError(ValueError):
    """A file of an index is not what was written."""


def dtype_of(path: str) -> np.dtype[Any]:
    """The type of the numbers in a file, by the ending of its name."""
    return np.dtype(FILE_DTYPES[path.rpartition(".")[2]])


class CheckedFile:
    """Numbers in a file, mapped into memory. What is read is compared with its checksum, once."""

    def __init__(self, path: Path, size: int) -> None:
        """Raises DamagedError unless the file and its checksums have the sizes of `size` bytes."""
        blocks = -(-size // BLOCK)
        found = [p.stat().st_size if p.is_file() else -1 for p in (path, crc_path(path))]
        if found != [size, 4 * blocks]:
            raise DamagedError(f"{path} must have {size} bytes, got {max(0, found[0])}; it is damaged")
        self.path, dtype = path, dtype_of(path.name)
        self._bytes: Any = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
        self._values = self._bytes[: size - size % dtype.itemsize].view(dtype)
        self._sums = np.fromfile(crc_path(path), "<u4")
        self._good = np.zeros(blocks, np.bool_)

    def __len__(self) -> int:
        return len(self._values)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Numbers `start` to `stop`, not copied. Raises DamagedError if they are not those that were written."""
        stop = len(self) if stop is None else stop
        width = self._values.itemsize
        first, last = start * width // BLOCK, -(-stop * width // BLOCK)
        for block in np.flatnonzero(~self._good[first:last]) + first:
            part = self._bytes[block * BLOCK : (block + 1) * BLOCK]
            if zlib.crc32(part) != self._sums[block]:
                raise DamagedError(
                    f"{self.path} is damaged: its checksum is another at byte {block * BLOCK}; remove it and "
                    "repeat sae browse, which then indexes anew"
                )
            self._good[block] = True
        return self._values[start:stop]

    def at(self, indices: np.ndarray) -> np.ndarray:
        """Numbers at any indices. All blocks between the least and the greatest are checked."""
        return (
            self.read(int(indices.min()), int(indices.max()) + 1)[indices - indices.min()]
            if indices.size
            else (np.empty(0, self._values.dtype))
        )


class Writer:
    """Appends numbers to a file of an index, with the checksums of its blocks."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._file = path, path.open("wb")
        self._rest, self._sums = b"", list[int]()

    def write(self, values: np.ndarray) -> None:
        """Append them, in the type that the file's name says."""
        content = np.ascontiguousarray(values, dtype_of(self.path.name)).tobytes()
        self._file.write(content)
        content = self._rest + content
        whole = len(content) - len(content) % BLOCK
        self._sums += [zlib.crc32(content[at : at + BLOCK]) for at in range(0, whole, BLOCK)]
        self._rest = content[whole:]

    def close(self) -> int:
        """Force all to the disk; how many bytes there are."""
        sums = self._sums + [zlib.crc32(self._rest)] * bool(self._rest)
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        write_atomically(crc_path(self.path), np.array(sums, "<u4").tobytes())
        return size

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()


@contextmanager
def writers(folder: Path, names: Mapping[str, str], sizes: dict[str, int], within: str) -> Iterator[dict[str, Writer]]:
    """Writers of the files `names`, by what they are called; their `sizes` are noted by their path from `within`."""
    made = {key: Writer(folder / within / name) for key, name in names.items()}
    try:
        yield made
        for writer in made.values():
            sizes[writer.path.relative_to(folder).as_posix()] = writer.close()
    finally:
        for writer in made.values():
            writer.abandon()


def crc_path(path: Path) -> Path:
    """Where the checksums of a file are."""
    return path.with_name(f"{path.name}.crc")


class PlaceHeader(NamedTuple):
    """One dictionary of an index."""

    hookpoint: str
    """Where it reads the language model."""
    num_latents: int
    d: int
    """Width of the rows of W_dec."""
    events: int
    scale: float
    """Factor of the stored activations, a power of two."""
    path: str
    """`direct` if its latents add to the residual stream, else `direct path only`."""
    ends: list[str] = []
    """Hookpoints that it writes, if there are several."""

    @property
    def is_crosscoder(self) -> bool:
        """Whether it is a crosscoder of several hookpoints, whose name is none of these."""
        return bool(self.ends) and self.hookpoint not in self.ends


class Header(NamedTuple):
    """Contents of an index. Everything is JSON."""

    about: dict[str, Any]
    """Model, data, checkpoint, versions and command, for people to read."""
    ctx_len: int
    sequences: int
    places: dict[str, PlaceHeader]
    why_no_logits: str
    """A sentence, if there are no logit effects."""
    vocabulary: str
    """SHA-256 of vocabulary.json."""
    files: dict[str, int]
    """{path in the index: bytes}"""


def write_manifest(folder: Path, header: Header) -> None:
    """Make the index whole: where its manifest is, it is complete."""
    places = {name: place._asdict() for name, place in header.places.items()}
    document = {"version": VERSION, **header._asdict(), "places": places}
    for name in header.files:
        sync((folder / name).parent)
    write_atomically(folder / MANIFEST, json.dumps(document | {"digest": _digest(document)}, indent=1).encode())


def read_manifest(folder: Path) -> Header:
    """The header of a complete index. Raises DamagedError naming what is wrong with it, also for another version."""
    path = folder / MANIFEST
    try:
        document = read_json(path, max_bytes=_MAX_MANIFEST_BYTES)
    except ValueError as error:
        raise DamagedError(str(error)) from None
    if document.get("version") != VERSION:
        raise DamagedError(f"{path} must be of version {VERSION}, got {short(document.get('version'))}; index again")
    if document.pop("digest", None) != _digest(document):
        raise DamagedError(f"{path} is damaged: its digest is another")
    document.pop("version")
    try:
        places = {name: PlaceHeader(**place) for name, place in document["places"].items()}
        return Header(**document | {"places": places})
    except (TypeError, AttributeError, KeyError):
        raise DamagedError(f"{path} is damaged: it does not say what an index holds") from None


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def place_files(index: int, several: bool) -> dict[str, str]:
    """The files of the place of this number, by what they hold, as paths in the index; `several`: it has ends."""
    names = {"starts": "i64", "positions": "u32", "values": "f16", "massive": "u8", "decoder": "f16"}
    names |= {RELATIVE_NORMS: "f32"} if several else {}
    names |= {name: kind for name, (kind, _) in COLUMNS.items()}
    return {name: f"places/{index}/{name}.{kind}" for name, kind in names.items()}


def read_vocabulary(folder: Path, sha256: str) -> list[str]:
    """The text of every token. Raises DamagedError unless it is what was written."""
    path = folder / "vocabulary.json"
    try:
        found = read_json(path, max_bytes=_MAX_VOCABULARY_BYTES)["tokens"] if sha256_of(path) == sha256 else None
    except (OSError, ValueError, KeyError):
        found = None
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise DamagedError(f"{path} is damaged: it does not hold the text of every token")
    return found


def write_vocabulary(folder: Path, tokens: list[str]) -> str:
    """Write the text of every token; the file's SHA-256."""
    write_atomically(folder / "vocabulary.json", json.dumps({"tokens": tokens}).encode())
    return sha256_of(folder / "vocabulary.json")
